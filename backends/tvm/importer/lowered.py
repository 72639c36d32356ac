"""The `matte::` operations: each by the function that emits its kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from tvm import relax, te

from mattecompress import ops
from mattecompress.backends.tvm.compute.operands import INJECTIVE, OPAQUE, compose, emit, in_memory
from mattecompress.backends.tvm.importer.absorption import PACKINGS
from mattecompress.backends.tvm.importer.conversion import Conversion, Scope
from mattecompress.backends.tvm.kernels.bitserial import emit_binary_conv2d, emit_binary_conv2d_bits
from mattecompress.backends.tvm.kernels.bitserial_depthwise import (
    emit_binary_depthwise_conv2d,
    emit_binary_depthwise_conv2d_bits,
    refuse_taps,
)
from mattecompress.backends.tvm.kernels.integer import emit_dequantize, emit_quantize, emit_quantized_conv2d
from mattecompress.backends.tvm.kernels.listed import (
    emit_mask_tiles,
    emit_scatter_tiles,
    gather_tiles,
    spread_tiles,
)
from mattecompress.backends.tvm.kernels.masked import (
    emit_masked_binary_conv2d,
    emit_masked_quantized_conv2d,
)
from mattecompress.backends.tvm.kernels.masked_float import emit_masked_conv2d
from mattecompress.backends.tvm.kernels.packing import (
    emit_pack_plane,
    emit_pack_signs,
    emit_pack_units,
    limits_of,
    packed_signs,
)
from mattecompress.program import Program

assert ops
matte = torch.ops.matte

Emitter = Callable[[relax.BlockBuilder, fx.Node, Sequence[Any]], relax.Var]

EMITTERS: dict[Any, Emitter] = {
    matte.pack_signs.default: emit_pack_signs,
    matte.pack_units.default: emit_pack_units,
    matte.pack_plane.default: emit_pack_plane,
    matte.binary_conv2d.default: emit_binary_conv2d,
    matte.binary_depthwise_conv2d.default: emit_binary_depthwise_conv2d,
    matte.binary_conv2d_bits.default: emit_binary_conv2d_bits,
    matte.binary_depthwise_conv2d_bits.default: emit_binary_depthwise_conv2d_bits,
    matte.quantize.default: emit_quantize,
    matte.dequantize.default: emit_dequantize,
    matte.quantized_conv2d.default: emit_quantized_conv2d,
    matte.mask_tiles.default: emit_mask_tiles,
    matte.scatter_tiles.default: emit_scatter_tiles,
    matte.masked_binary_conv2d.default: emit_masked_binary_conv2d,
    matte.masked_quantized_conv2d.default: emit_masked_quantized_conv2d,
    matte.masked_conv2d.default: emit_masked_conv2d,
}


def convert(scope: Scope, node: fx.Node) -> Conversion:
    """Any node of `EMITTERS`: activations are handed over in memory and in storage order, constants as tensors."""
    if node in scope.values:
        return Conversion(scope.values[node], str(node.target), OPAQUE, done=True)
    twins = _packed_alike(node)
    if len(twins) > 1:
        return _pack_at_once(scope, twins)
    operands = [_operand(scope, node, source) for source in node.args if isinstance(source, fx.Node)]
    variable = EMITTERS[node.target](scope.builder, node, operands)
    return Conversion(in_memory(variable), str(node.target), OPAQUE, done=True)


def _operand(scope: Scope, node: fx.Node, source: fx.Node) -> Any:
    """Spread tiles stay a view for the convolution that gathers them; a packing computes a view itself."""
    if source.op == "get_attr":
        return scope.program.tensor(source).detach()
    if node.target in PACKINGS and not scope.view(source).is_stored:
        return scope.emit_for(source, "gather", scope.view(source))
    if node.target is matte.masked_conv2d.default and source.target is matte.spread_tiles.default:
        return scope.view(source)
    return scope.variable(source)


def _packed_alike(node: fx.Node) -> list[fx.Node]:
    """The packings of one source that differ in their thresholds alone, this one among them; none but of signs."""
    if node.target is not matte.pack_signs.default or node.args[1] is None:
        return []
    readers = node.args[0].users  # type: ignore[union-attr]
    return [
        reader
        for reader in readers
        if reader.target is node.target and reader.args[1] is not None and reader.args[2:] == node.args[2:]
    ]


def _pack_at_once(scope: Scope, twins: list[fx.Node]) -> Conversion:
    """Several packings of one source by one kernel, which reads or computes it once."""
    first = twins[0]
    source = scope.view(first.args[0])  # type: ignore[arg-type]
    limits = [scope.constant(limits_of(scope.program.tensor(twin.args[1]))) for twin in twins]  # type: ignore[arg-type]
    views = [packed_signs(source, twin, limit) for twin, limit in zip(twins, limits, strict=True)]
    with scope.builder.computing(*twins):
        results = emit(scope.builder, "pack", OPAQUE, *views)
    for place, twin in enumerate(twins):
        scope.values[twin] = in_memory(scope.builder.emit(relax.TupleGetItem(results, place)))
    return Conversion(scope.values[first], str(first.target), OPAQUE, done=True)


def spread(scope: Scope, node: fx.Node) -> Conversion:
    """`matte::spread_tiles`: whoever reads the images computes them."""
    _, _, height, width = scope.shape(node)

    def compute(values: te.Tensor, tiles: te.Tensor) -> te.Tensor:
        return spread_tiles(values, tiles, (height, width))

    operands = [in_memory(scope.variable(source)) for source in node.all_input_nodes]
    return Conversion(compose(compute, operands), "spread_tiles", INJECTIVE, done=True)


def gather(scope: Scope, node: fx.Node) -> Conversion:
    """`matte::gather_tiles`: whoever reads the tiles takes them from the images."""
    width = scope.shape(node)[3]

    def compute(images: te.Tensor, tiles: te.Tensor) -> te.Tensor:
        return gather_tiles(images, tiles, width)

    operands = [in_memory(scope.variable(source)) for source in node.all_input_nodes]
    return Conversion(compose(compute, operands), "gather_tiles", INJECTIVE, done=True)


CONVERTERS = {
    **dict.fromkeys(EMITTERS, convert),
    matte.spread_tiles.default: spread,
    matte.gather_tiles.default: gather,
}


def _refuse_depthwise(program: Program, node: fx.Node) -> str | None:
    rows, columns, _ = program.facts(node.args[1]).sizes  # type: ignore[arg-type]
    return refuse_taps((rows, columns))


REFUSALS = {matte.binary_depthwise_conv2d.default: _refuse_depthwise}
