"""y = conv(x, W) + b  becomes  y = conv(Q_a(x), Q_w(W)) + b

Q_w: signed codes, one scale per output channel. Q_a: unsigned codes, one scale and zero point per tensor, however
many convolutions read it. Round to nearest; the ranges come from the weights themselves and from running the
program over clips with its recurrent state. Bias stays float32 and the network's outputs are not quantized.

Source: PTQ4VM Table 1, row "MSE" (range search and nothing else); signs and granularity of weights as in its
published code. That code gives activations signed codes, which spend half of them on nothing after a ReLU, and
quantizes the output of the last convolution, which caps alpha at 8 levels in 4 bits: neither is followed here.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx

from mattecompress.calibration import RangeMethod, fit_activations, fit_weights, observe
from mattecompress.facts import Facts, Precision
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig, check_bits
from mattecompress.options import nearest
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.pipeline import Context, Pass, PreconditionError, expect
from mattecompress.program import Program

conv2d = torch.ops.aten.conv2d.default
INPUT, WEIGHT = 0, 1
REFINER = "refiner.*"


@dataclass(frozen=True)
class Quantize(Pass):
    """Fake-quantize the weights and the input of each convolution; afterwards the rest are excluded or have no weights.

    weights, activations: bits, 2 to 8.
    range: ends of range of least error, or the extremes that were seen.
    first, last: bits of weights and input of the first and of the last convolution; none means as the others.
        PTQ4VM keeps the first convolution's weights in 8 bits; the picture it reads is 8-bit data anyway.
    exclude: patterns of convolutions that stay float, such as `decoder.*`. The guided filter's are excluded unless
        another list is given: it subtracts nearly equal products, which does not survive 8 bits.
    """

    weights: int = 8
    activations: int = 8
    range: RangeMethod = "mse"
    first: int | None = 8
    last: int | None = None
    exclude: tuple[str, ...] = (REFINER,)
    name: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        check_bits(self.weights, "weights")
        check_bits(self.activations, "activations")
        for what, bits in (("first", self.first), ("last", self.last)):
            if bits is not None:
                check_bits(bits, what)

    def requires(self, program: Program) -> None:
        """Batch norms are folded, and every pattern matches something."""
        try:
            FoldBatchNorm().ensures(program)
        except PreconditionError as error:
            raise PreconditionError(f"{error}: run fold-batch-norm before quantize") from error
        paths = [layer_path(node) for node in program.find(conv2d)]
        for pattern in self.exclude:
            matched = pattern == REFINER or any(fnmatchcase(path, pattern) for path in paths)
            expect(matched, f"exclude pattern '{pattern}' matches no convolution{nearest(pattern, paths)}")

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
            quantizer = FakeQuantize(QuantizerConfig(bits))
            fit_activations(quantizer, seen[source.name], self.range)
            _insert(program, source, readers, quantizer, "input_quantizer")
        for (source, bits), readers in weights.items():
            weight = program.tensor(source)
            quantizer = FakeQuantize(QuantizerConfig(bits, symmetric=True, channels=len(weight)))
            fit_weights(quantizer, weight, self.range)
            _insert(program, source, readers, quantizer, "weight_quantizer")
        for node, precision in sites.items():
            node.meta["facts"] = program.facts(node).but(precision=precision)
        return self._describe(program, sites, len(activations))

    def _sites(self, program: Program) -> dict[fx.Node, Precision]:
        """The convolutions to quantize, in order."""
        nodes = program.find(conv2d)
        sites = {}
        for node in nodes:
            if quantizer_of(program, node.args[WEIGHT]) is None and self._obstacle(node) is None:
                bits = self.first if node is nodes[0] else self.last if node is nodes[-1] else None
                sites[node] = Precision(bits or self.weights, bits or self.activations)
        return sites

    def _obstacle(self, node: fx.Node) -> str | None:
        """Why a convolution must stay float."""
        weight = node.args[WEIGHT]
        if any(fnmatchcase(layer_path(node), pattern) for pattern in self.exclude):
            return "excluded"
        return None if isinstance(weight, fx.Node) and weight.op == "get_attr" else "its weights are computed"

    def _describe(self, program: Program, sites: dict[fx.Node, Precision], tensors: int) -> str:
        kinds = Counter(str(precision) for precision in sites.values())
        counts = " and ".join(f"{count} convolutions in {kind}" for kind, count in kinds.items())
        nodes = [node for node in program.find(conv2d) if quantizer_of(program, node.args[WEIGHT]) is None]
        left = "".join(f"; {layer_path(node)} stays float: {self._obstacle(node)}" for node in nodes)
        return f"{counts}, {tensors} activation tensors{left}"


def layer_path(node: fx.Node) -> str:
    """Where a convolution's weight lives, such as `decoder.decode1.conv.0`; the node's name if it is computed."""
    weight = node.args[WEIGHT]
    if isinstance(weight, fx.Node) and weight.op == "call_module":
        weight = weight.args[0]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return node.name
    return str(weight.target).rpartition(".")[0] or node.name


def quantizer_of(program: Program, node: object) -> FakeQuantize | None:
    """The fake quantizer that a node calls, if it does."""
    if not (isinstance(node, fx.Node) and node.op == "call_module"):
        return None
    module = program.module(node)
    return module if isinstance(module, FakeQuantize) else None


def free_path(program: Program, path: str) -> str:
    """The path, or with the first number behind it that no tensor or module of the program has."""
    module = program.graph_module
    taken = {
        name for name, _ in [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]
    }
    candidates = itertools.chain([path], (f"{path}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in taken)


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
    path = free_path(program, f"{layer_path(readers[0])}.{role}")
    program.add_module(path, quantizer)
    with program.graph.inserting_before(readers[0]):
        call = program.graph.call_module(path, (source,))
    regions = {program.facts(reader).region for reader in readers}
    home = program.facts(readers[0] if len(regions) == 1 else source)
    made = program.facts(source)
    call.meta["facts"] = Facts(made.shape, made.dtype, home.scope, region=home.region)
    for reader in readers:
        reader.replace_input_with(source, call)
