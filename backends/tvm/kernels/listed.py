"""Lists of a mask's active tiles, and the ways into compact values and out of them.

A list of tiles is [count, places, slots]; see mattecompress.ops.masked. Row k of a compact value (1, K, width, C) is the
tile places[k], which lies at

    image = place // (H * W / width),  row = place // (W / width) % H,  column = place % (W / width) * width

Gathering and spreading are no kernels: whoever reads them computes them. Scattering joins what computes the image that
it adds to, reads the list the other way round, by slots, and writes every pixel once.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.operands import OPAQUE
from mattecompress.backends.tvm.kernels.window import Expression, Outputs, constant
from mattecompress.backends.tvm.schedules.stages import child_blocks

JOINS_BASE = "matte.joins_base"
"""Attribute of a function that may become the epilogue of what computes this operand, and only of that."""


def active_outputs(tiles: te.Tensor, height: int, columns: int, width: int) -> Outputs:
    """The outputs in the active tiles of images of `height` rows and `columns` pixels."""
    across = columns // width

    def place(n: Expression, k: Expression, t: Expression) -> tuple[Expression, Expression, Expression]:
        tile = tiles(k + 1)
        row, column = tirx.truncdiv(tile, across), tirx.truncmod(tile, across)
        return tirx.truncdiv(row, height), tirx.truncmod(row, height), column * width + t

    return Outputs((1, (int(tiles.shape[0]) - 1) // 2, width), place, masked=True)


def emit_mask_tiles(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::mask_tiles`: mask (N, H, W, 1) to int32 (1 + 2 K)."""
    width = arguments_of(node)["width"]

    def compute(mask: te.Tensor) -> te.Tensor:
        return list_tiles(mask, width)

    attributes = {"op_pattern": OPAQUE, "tirx.is_scheduled": True}
    return emit_over(builder, "mask_tiles", compute, operands[0], **attributes)


def list_tiles(mask: te.Tensor, width: int) -> te.Tensor:
    """The list, in one pass: every tile is written behind the last active one, which the next overwrites."""
    batch, height, columns, _ = (int(extent) for extent in mask.shape)
    count = batch * height * columns // width
    nothing = tirx.const(0, str(mask.dtype))

    def build(inputs: Any, outputs: Any) -> Any:
        source, result = T.buffer_proxy(inputs[0]), T.buffer_proxy(outputs[0])
        with IRBuilder() as ir:
            with T.serial(0, 1):  # the builder takes one statement
                result[0] = 0
                with T.serial(0, count) as tile:
                    flags = [source[tile * width + pixel] != nothing for pixel in range(width)]
                    active = tirx.any(*flags) if width > 1 else flags[0]
                    result[1 + result[0]] = tile
                    result[1 + count + tile] = tirx.Select(active, result[0], -1)
                    result[0] = result[0] + tirx.Cast("int32", active)
                with T.serial(0, count - result[0]) as rest:
                    result[1 + result[0] + rest] = 0
            return ir.get()

    buffers = (tirx.decl_buffer(mask.shape, str(mask.dtype)), tirx.decl_buffer((1 + 2 * count,), "int32"))
    return te.extern(
        [(1 + 2 * count,)],
        [mask],
        build,
        dtype="int32",
        name="tiles",
        in_buffers=[buffers[0]],
        out_buffers=[buffers[1]],
    )


def gather_tiles(x: te.Tensor, tiles: te.Tensor, width: int) -> te.Tensor:
    """`matte::gather_tiles`: (N, H, W, C) to (1, K, width, C)."""
    _, height, columns, channels = (int(extent) for extent in x.shape)
    outputs = active_outputs(tiles, height, columns, width)
    shape = (*outputs.shape, channels)
    return te.compute(shape, lambda n, k, t, c: x(*outputs.place(n, k, t), c), name="gathered_tiles")


def spread_tiles(values: te.Tensor, tiles: te.Tensor, size: tuple[int, int]) -> te.Tensor:
    """`matte::spread_tiles`: compact (1, K, width, C) to images (N, H, W, C) of `size`."""
    _, count, width, channels = (int(extent) for extent in values.shape)
    height, columns = size
    nothing = tirx.const(0, values.dtype)

    def element(n: Expression, y: Expression, x: Expression, c: Expression) -> Expression:
        slot, value = _slot(values, tiles, (n * height + y) * (columns // width) + x // width)
        return tirx.if_then_else(slot >= 0, value(x % width, c), nothing)

    return te.compute((count * width // (height * columns), *size, channels), element, name="spread")


def _slot(
    values: te.Tensor, tiles: te.Tensor, tile: Expression
) -> tuple[Expression, Callable[..., Expression]]:
    """Which row holds a tile, -1 where none does, and the elements of that row or of the first."""
    slot = tiles(1 + int(values.shape[1]) + tile)
    row = tirx.max(slot.astype("int64"), tirx.const(0, "int64"))
    return slot, lambda pixel, channel: values(0, row, pixel, channel)


def emit_scatter_tiles(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::scatter_tiles`: values (1, K, width, C) added to (N, H, W, C)."""

    def compute(values: te.Tensor, tiles: te.Tensor, base: te.Tensor) -> te.Tensor:
        _, height, columns, _ = (int(extent) for extent in base.shape)
        added = spread_tiles(values, tiles, (height, columns))
        return te.compute(base.shape, lambda *index: base(*index) + added(*index), name="scattered")

    attributes = {"op_pattern": OPAQUE, JOINS_BASE: len(operands) - 1}
    return emit_over(builder, "scatter_tiles", compute, *operands, **attributes)


def sums_of(schedule: Any) -> Any:
    """The block that adds up a masked convolution."""
    return next(b for b in child_blocks(schedule) if schedule.get(b).name_hint.startswith("total"))


def emit_over(
    builder: relax.BlockBuilder,
    name: str,
    compute: Callable[..., te.Tensor],
    *operands: Any,
    **attributes: Any,
) -> relax.Var:
    """Call one kernel, a function of these attributes, over activations and constants."""
    sources = [expression(each) for each in operands]
    return builder.emit_te(compute, *sources, primfunc_name_hint=name, primfunc_attrs=attributes)


def expression(operand: Any) -> relax.Expr:
    """An activation as it is, or a constant."""
    return operand if isinstance(operand, relax.Expr) else relax.const(constant(operand))
