"""y = conv(x, W)  becomes  y = conv(k x, W / k),  a positive k for each channel that is read

Channels of sizes that differ by orders of magnitude share the steps of one quantizer: the large ones give the range, the
small ones are lost in a step. `mattecompress.quantization.equalization` has how k is found, and the sources. Where x
comes out of a convolution, maybe through a ReLU, and nothing else reads it, k goes into the outputs of that one; else x
is multiplied.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.convolutions import bias_of, groups_of
from mattecompress.facts import Facts, Precision
from mattecompress.modules.quantizer import FakeQuantize, check_bits
from mattecompress.options import OptionError
from mattecompress.passes.quantize import INPUT, REFINER, WEIGHT, conv2d, labels_of, layer_path
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.quantization.equalization import Channels, best_factors, grouped, sample_channels
from mattecompress.quantization.precision_rules import matches_any
from mattecompress.side_by_side import side_by_side

aten = torch.ops.aten


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Scale the channels that a convolution reads so that one quantizer suits all; afterwards it yields what it did.

    weights, activations: bits that `quantize` will give; it has to keep a scale for each output channel.
    first: bits of both of the first convolution; none means as the others.
    gain: the factor by which the expected noise has to fall for a convolution to be changed.
    exclude: patterns of convolutions or regions that are left alone, as of `quantize`.
    """

    weights: int = 8
    activations: int = 8
    first: int | None = 8
    gain: float = 1.1
    exclude: tuple[str, ...] = (REFINER,)
    name: ClassVar[str] = "equalize-channels"

    def __post_init__(self) -> None:
        check_bits(self.weights, "weights")
        check_bits(self.activations, "activations")
        if self.first is not None:
            check_bits(self.first, "first")
        if self.gain <= 1:
            raise OptionError(f"gain={self.gain:g}: expected a factor above 1")

    def requires(self, program: Program) -> None:
        """Nothing is quantized."""
        expect(
            not program.called_modules(FakeQuantize), "run equalize-channels before quantize, not after it"
        )

    def apply(self, program: Program, context: Context) -> str | None:
        """Look at all channels on the clips, then change one convolution after the other."""
        nodes = program.find(conv2d)
        layers = [node for node in nodes if self._takes(program, node)]
        if not layers:
            return None
        sources = [_source(node, INPUT).name for node in layers]
        seen = sample_channels(program, sources, context.clips, context.seed, context.progress)
        factors = side_by_side(
            lambda pair: self._factors(program, pair[0], nodes[0], seen[pair[1]]),
            list(zip(layers, sources, strict=True)),
        )
        changed = [(node, found) for node, found in zip(layers, factors, strict=True) if found is not None]
        absorbed = sum(_scale_channels(program, node, found) for node, found in changed)
        if not changed:
            return None
        return f"{len(changed)} of {len(layers)} convolutions, {absorbed} of them by the one before"

    def _factors(self, program: Program, node: fx.Node, first: fx.Node, seen: Channels) -> Tensor | None:
        bits = self.first if node is first else None
        precision = Precision(bits or self.weights, bits or self.activations)
        weight = grouped(program.tensor(_source(node, WEIGHT)), groups_of(node))
        return best_factors(seen, weight, precision, self.gain)

    def _takes(self, program: Program, node: fx.Node) -> bool:
        """A convolution of images, with weights that only it reads."""
        excluded = any(matches_any(pattern, labels_of(program, node)) for pattern in self.exclude)
        images = len(program.facts(_source(node, INPUT)).shape) == 4
        return not excluded and images and _is_own(node.args[WEIGHT])


def _source(node: fx.Node, position: int) -> fx.Node:
    source = node.args[position]
    assert isinstance(source, fx.Node)
    return source


def _is_own(held: object) -> bool:
    """Whether this is a tensor of the program that one node reads."""
    return isinstance(held, fx.Node) and held.op == "get_attr" and len(held.users) == 1


@torch.no_grad()
def _scale_channels(program: Program, node: fx.Node, factors: Tensor) -> bool:
    """Let a convolution read k x; whether another takes k."""
    _divide_weights(program, node, factors)
    producer = _producer(_source(node, INPUT))
    if producer is None:
        _multiply_input(program, node, factors)
        return False
    _multiply_outputs(program, producer, factors)
    return True


def _producer(node: fx.Node) -> fx.Node | None:
    """The convolution whose outputs a node hands on to one reader, if k can go into it."""
    if node.target is aten.relu.default and len(node.users) == 1:
        node = _source(node, INPUT)
    bias = bias_of(node) if node.target is conv2d else None
    absorbs = node.target is conv2d and len(node.users) == 1 and _is_own(node.args[WEIGHT])
    return node if absorbs and (bias is None or _is_own(bias)) else None


def _divide_weights(program: Program, node: fx.Node, factors: Tensor) -> None:
    weight, groups = program.tensor(_source(node, WEIGHT)), groups_of(node)
    weight.copy_((grouped(weight, groups) / factors.reshape(groups, 1, -1, 1)).reshape(weight.shape))


def _multiply_outputs(program: Program, node: fx.Node, factors: Tensor) -> None:
    program.tensor(_source(node, WEIGHT)).mul_(factors.reshape(-1, 1, 1, 1))
    bias = bias_of(node)
    if bias is not None:
        program.tensor(bias).mul_(factors)


def _multiply_input(program: Program, node: fx.Node, factors: Tensor) -> None:
    source, home = _source(node, INPUT), program.facts(node)
    path = program.free_path(f"{layer_path(node)}.input_factors")
    held = program.constant(path, nn.Parameter(factors.reshape(1, -1, 1, 1).clone()))
    with program.graph.inserting_before(node):
        product = program.graph.call_function(aten.mul.Tensor, (source, held))
    made = program.facts(source)
    product.meta["facts"] = Facts(made.shape, made.dtype, home.scope, region=home.region)
    node.update_arg(INPUT, product)
