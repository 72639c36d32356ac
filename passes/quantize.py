"""y = conv(x, W) + b  becomes  y = conv(Q_a(x), Q_w(W)) + b

Q_w: signed codes, one scale per output channel, unless options say otherwise. Q_a: unsigned codes, one scale and
zero point per tensor, however many convolutions read it. Round to nearest; the ranges come from the weights
themselves and from running the program over clips with its recurrent state. Bias stays float32 and the network's
outputs are not quantized.

Source: PTQ4VM Table 1, row "MSE" (range search and nothing else); signs and granularity of weights as in its
published code. That code gives activations signed codes, which spend half of them on nothing after a ReLU, and
quantizes the output of the last convolution, which caps alpha at 8 levels in 4 bits: neither is followed here.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from mattecompress.facts import Facts, Precision
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig, check_bits
from mattecompress.options import nearest
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.pipeline import Context, Pass, PreconditionError, expect
from mattecompress.program import Program
from mattecompress.quantization.calibration import RangeMethod, fit_activations, fit_weights, observe
from mattecompress.quantization.precision_rules import Rule, last_match, matches_any

conv2d = torch.ops.aten.conv2d.default
INPUT, WEIGHT = 0, 1
REFINER = "refiner.*"

Codes = Literal["symmetric", "asymmetric"]


@dataclass(frozen=True)
class Quantize(Pass):
    """Fake-quantize the weights and the input of each convolution; afterwards the rest are excluded or have no weights.

    weights, activations: bits, 2 to 8.
    range: ends of range of least error, or the extremes that were seen.
    first, last: bits of weights and input of the first and of the last convolution; none means as the others.
        PTQ4VM keeps the first convolution's weights in 8 bits; the picture it reads is 8-bit data anyway.
    exclude: patterns of convolutions or regions that stay float, such as `decoder.*`. The guided filter's are
        excluded unless another list is given: it subtracts nearly equal products, which does not survive 8 bits.
    rules: bits by pattern of convolution or region, such as `decoder.*:w8a8`, `aspp:a8` or `head:float`; the last
        that matches decides, also over `first` and `last`.
    weight_codes: symmetric, or asymmetric with a zero point; the latter have no integer form yet.
    weight_scales: one for each output channel, or one for the whole tensor.
    activation_codes: asymmetric with a zero point, or symmetric, which PTQ4VM's published code has.
    """

    weights: int = 8
    activations: int = 8
    range: RangeMethod = "mse"
    first: int | None = 8
    last: int | None = None
    exclude: tuple[str, ...] = (REFINER,)
    rules: tuple[str, ...] = ()
    weight_codes: Codes = "symmetric"
    weight_scales: Literal["channel", "tensor"] = "channel"
    activation_codes: Codes = "asymmetric"
    name: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        check_bits(self.weights, "weights")
        check_bits(self.activations, "activations")
        for what, bits in (("first", self.first), ("last", self.last)):
            if bits is not None:
                check_bits(bits, what)
        self._rules()

    def requires(self, program: Program) -> None:
        """Batch norms are folded, and every pattern matches something."""
        try:
            FoldBatchNorm().ensures(program)
        except PreconditionError as error:
            raise PreconditionError(f"{error}: run fold-batch-norm before quantize") from error
        labels = {label for node in program.find(conv2d) for label in labels_of(program, node)}
        for pattern in self.exclude:
            matched = pattern == REFINER or matches_any(pattern, labels)
            expect(matched, f"exclude pattern '{pattern}' matches no convolution{nearest(pattern, labels)}")
        for rule in self._rules():
            near = nearest(rule.pattern, labels)
            expect(rule.matches(labels), f"rule pattern '{rule.pattern}' matches no convolution{near}")

    def ensures(self, program: Program) -> None:
        """Nothing quantizable is left."""
        expect(not self._sites(program), "a convolution was left float")

    def apply(self, program: Program, context: Context) -> str | None:
        """Observe what the convolutions read, then put quantizers in and fit their ranges."""
        sites = self._sites(program)
        if not sites:
            return None
        activations, weights = _readers(sites, INPUT), _readers(sites, WEIGHT)
        read = [source.name for source, _ in activations]
        seen = observe(program, read, context.clips, context.seed, context.progress)
        for (source, bits), readers in activations.items():
            quantizer = FakeQuantize(QuantizerConfig(bits, symmetric=self.activation_codes == "symmetric"))
            fit_activations(quantizer, seen[source.name], self.range)
            _insert(program, source, readers, quantizer, "input_quantizer")
        for (source, bits), readers in weights.items():
            weight = program.tensor(source)
            channels = len(weight) if self.weight_scales == "channel" else None
            quantizer = FakeQuantize(QuantizerConfig(bits, self.weight_codes == "symmetric", channels))
            fit_weights(quantizer, weight, self.range)
            _insert(program, source, readers, quantizer, "weight_quantizer")
        for node, precision in sites.items():
            node.meta["facts"] = program.facts(node).but(precision=precision)
        return self._describe(program, sites, len(activations))

    def _rules(self) -> list[Rule]:
        return [Rule.parse(text) for text in self.rules]

    def _sites(self, program: Program) -> dict[fx.Node, Precision]:
        """The convolutions to quantize, in order."""
        nodes = program.find(conv2d)
        sites = {}
        for node in nodes:
            if quantizer_of(program, node.args[WEIGHT]) is None and self._obstacle(program, node) is None:
                bits = self.first if node is nodes[0] else self.last if node is nodes[-1] else None
                rule = last_match(self._rules(), labels_of(program, node))
                usual = Precision(bits or self.weights, bits or self.activations)
                sites[node] = rule.applied(usual) if rule else usual
        return sites

    def _obstacle(self, program: Program, node: fx.Node) -> str | None:
        """Why a convolution must stay float."""
        weight, labels = node.args[WEIGHT], labels_of(program, node)
        if any(matches_any(pattern, labels) for pattern in self.exclude):
            return "excluded"
        rule = last_match(self._rules(), labels)
        if rule is not None and rule.stays_float:
            return f"rule {rule.pattern}"
        return None if isinstance(weight, fx.Node) and weight.op == "get_attr" else "its weights are computed"

    def _describe(self, program: Program, sites: dict[fx.Node, Precision], tensors: int) -> str:
        kinds = Counter(str(precision) for precision in sites.values())
        counts = " and ".join(f"{count} convolutions in {kind}" for kind, count in kinds.items())
        nodes = [node for node in program.find(conv2d) if quantizer_of(program, node.args[WEIGHT]) is None]
        left = "".join(f"; {layer_path(node)} stays float: {self._obstacle(program, node)}" for node in nodes)
        return f"{counts}, {tensors} activation tensors{left}"


def layer_path(node: fx.Node) -> str:
    """Where a convolution's weight lives, such as `decoder.decode1.conv.0`; the node's name if it is computed."""
    weight = node.args[WEIGHT]
    if isinstance(weight, fx.Node) and weight.op == "call_module":
        weight = weight.args[0]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return node.name
    return str(weight.target).rpartition(".")[0] or node.name


def labels_of(program: Program, node: fx.Node) -> list[str]:
    """What a pattern may name a convolution by: its path, and its region where it has one."""
    region = program.facts(node).region
    return [layer_path(node), region] if region else [layer_path(node)]


def quantizer_of(program: Program, node: object) -> FakeQuantize | None:
    """The fake quantizer that a node calls, if it does."""
    if not (isinstance(node, fx.Node) and node.op == "call_module"):
        return None
    module = program.module(node)
    return module if isinstance(module, FakeQuantize) else None


def _readers(sites: dict[fx.Node, Precision], position: int) -> dict[tuple[fx.Node, int], list[fx.Node]]:
    """Which convolutions read a tensor as their input or weight in so many bits."""
    readers: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node, precision in sites.items():
        source = node.args[position]
        assert isinstance(source, fx.Node)
        bits = precision.activation_bits if position == INPUT else precision.weight_bits
        readers.setdefault((source, bits), []).append(node)
    return readers


def _insert(
    program: Program, source: fx.Node, readers: list[fx.Node], quantizer: FakeQuantize, role: str
) -> None:
    """Let the readers read the quantizer; it joins their block if they share one, else stays where its tensor is made.

    So no block comes to depend on another that it did not depend on before.
    """
    path = program.free_path(f"{layer_path(readers[0])}.{role}")
    program.add_module(path, quantizer)
    with program.graph.inserting_before(readers[0]):
        call = program.graph.call_module(path, (source,))
    regions = {program.facts(reader).region for reader in readers}
    home = program.facts(readers[0] if len(regions) == 1 else source)
    made = program.facts(source)
    call.meta["facts"] = Facts(made.shape, made.dtype, home.scope, region=home.region)
    for reader in readers:
        reader.replace_input_with(source, call)
