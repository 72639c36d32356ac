"""Binary layers that hand on bits: a binary convolution, elementwise nodes and a packing become one operation.

Between a sum of signs and the next layer's bit there are only elementwise nodes with constants: scale, shift,
activation, threshold. A layer's sums are few integers, so each channel's bit is tabulated for all of them by the
nodes themselves. Where the integers that give 1 are one interval, or all but one, as after any monotone activation
and after hardswish, comparing integers gives the same bits:

    pack(activation(sum * scale + shift) >= threshold)  =  pack(low <= sum <= high)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress import ops
from mattecompress.analysis.operands import is_flat
from mattecompress.backends.tvm.importer.absorption import PACKINGS
from mattecompress.backends.tvm.kernels.bitserial_depthwise import MOST_TAPS_TO_BITS
from mattecompress.facts import Provenance
from mattecompress.program import Program
from mattecompress.provenance import origins

assert ops
aten, matte = torch.ops.aten, torch.ops.matte

WITH_BITS: dict[Any, Any] = {
    matte.binary_conv2d.default: matte.binary_conv2d_bits.default,
    matte.binary_depthwise_conv2d.default: matte.binary_depthwise_conv2d_bits.default,
}
STEPS = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.relu.default,
    aten.relu6.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.leaky_relu.default,
    aten._prelu_kernel.default,
    aten.prelu.default,
}
"""Elementwise operations that round alike everywhere."""


@dataclass(frozen=True)
class Layer:
    """A binary convolution, the nodes that alone read it one after the other, and the packing that ends them."""

    convolution: fx.Node
    steps: tuple[fx.Node, ...]
    packing: fx.Node


def join_packings(program: Program) -> Program:
    """The program with every layer that allows it handing on bits; `program` itself is left alone."""
    joined = program.clone()
    for packing in [node for node in joined.operations() if node.target in PACKINGS]:
        layer = find_layer(joined, packing)
        limits = None if layer is None else find_limits(joined, layer)
        if layer is not None and limits is not None:
            _join(joined, layer, limits)
    return joined


def find_layer(program: Program, packing: fx.Node) -> Layer | None:
    """The layer that a packing ends, if the bytes it makes are full ones of one group."""
    steps: list[fx.Node] = []
    node = _operand(packing)
    while node is not None and len(node.users) == 1 and _is_step(program, node):
        steps.insert(0, node)
        node = _operand(node)
    if node is None or node.target not in WITH_BITS or len(node.users) > 1:
        return None
    channels = program.facts(node).sizes[1]
    groups = node.args[6] if node.target is matte.binary_conv2d.default else 1
    taps = program.facts(node.args[1]).sizes[:2]  # type: ignore[arg-type]
    depthwise = node.target is matte.binary_depthwise_conv2d.default
    if depthwise and taps[0] * taps[1] > MOST_TAPS_TO_BITS:
        return None
    full = program.facts(packing).sizes[3] * 8 == channels and channels % (8 * groups) == 0  # type: ignore[operator]
    return Layer(node, tuple(steps), packing) if full else None


def _is_step(program: Program, node: fx.Node) -> bool:
    """Whether a node does the same at every pixel."""
    constants = [source for source in node.all_input_nodes if source.op == "get_attr"]
    return node.target in STEPS and all(is_flat(program, constant) for constant in constants)


def _operand(node: fx.Node) -> fx.Node | None:
    """The one operand that is no constant."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return sources[0] if len(sources) == 1 and sources[0] is node.args[0] else None


def find_limits(program: Program, layer: Layer) -> tuple[Tensor, Tensor] | None:
    """Low and high (O,) as `matte::binary_conv2d_bits` takes them; None where some channel's bits need more."""
    _, channels, *_ = program.facts(layer.convolution).sizes
    most = _largest_sum(program, layer.convolution)
    sums = torch.arange(-most, most + 1, dtype=torch.int32)
    value = sums.expand(1, channels, -1)[..., None].contiguous()
    for step in (*layer.steps, layer.packing):
        value = _evaluate(program, step, value)
    bits = ops.binary.unpack_bits(value[0, :, 0], channels).T
    return limits_of(bits, most)


def limits_of(bits: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Low and high of bits (O, 2 * most + 1) of the sums from -most to most."""
    if ((bits[:, 1:] != bits[:, :-1]).sum(1) > 2).any():
        return None
    count = bits.shape[1]
    starts_set = bits[:, 0]
    first_other = (bits != bits[:, :1]).int().argmax(1)
    last_other = count - 1 - (bits != bits[:, :1]).flip(1).int().argmax(1)
    changes = (bits != bits[:, :1]).any(1)
    low = torch.where(starts_set, last_other + 1, first_other)
    high = torch.where(starts_set, first_other - 1, last_other)
    low = torch.where(changes, low, torch.where(starts_set, 0, count))
    high = torch.where(changes, high, torch.where(starts_set, count - 1, count))
    return (low - most).int(), (high - most).int()


def _largest_sum(program: Program, convolution: fx.Node) -> int:
    weight = program.facts(convolution.args[1]).sizes  # type: ignore[arg-type]
    if convolution.target is matte.binary_depthwise_conv2d.default:
        return weight[0] * weight[1]
    return weight[1] * weight[2] * int(convolution.args[2])  # type: ignore[arg-type]


def _evaluate(program: Program, node: fx.Node, value: Tensor) -> Tensor:
    def known(argument: fx.Node) -> Any:
        return program.tensor(argument) if argument.op == "get_attr" else value

    arguments, keywords = fx.map_arg((node.args, node.kwargs), known)
    result = node.target(*arguments, **keywords)  # type: ignore[operator]
    assert isinstance(result, Tensor)
    return result


def _join(program: Program, layer: Layer, limits: tuple[Tensor, Tensor]) -> None:
    convolution, packing = layer.convolution, layer.packing
    constants = [
        program.constant(program.free_path(f"{convolution.name}_{name}"), value)
        for name, value in zip(("low", "high"), limits, strict=True)
    ]
    bits, weight, *rest = convolution.args
    with program.graph.inserting_before(packing):
        target = WITH_BITS[convolution.target]
        joined = program.graph.call_function(target, (bits, weight, *constants, *rest))
    joined.meta["facts"] = program.facts(packing).but(
        precision=program.facts(convolution).precision,
        made=Provenance("join-packings", origins(convolution, *layer.steps, packing)),
    )
    program.replace(packing, joined)
    for node in (*reversed(layer.steps), convolution):
        program.graph.erase_node(node)
