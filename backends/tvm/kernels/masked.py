"""Convolutions at the active tiles of a mask: list, gather, the dense kernels' inner loops, scatter.

A list of tiles is [count, places, slots]; see mattecompress.ops.masked. Row k of a compact result (1, K, width, O) is the
tile places[k], which lies at

    image = place // (H * W / width),  row = place // (W / width) % H,  column = place % (W / width) * width

so that a masked kernel is the dense one whose outputs lie there, and whose loop over k ends at the count: it takes the
active share of the dense time. What follows elementwise joins that loop. `scatter_tiles` reads the list the other way
round, by slots, and writes every pixel once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.operands import (
    CONVOLUTION,
    INJECTIVE,
    OPAQUE,
    View,
    compose,
    emit,
    in_memory,
)
from mattecompress.backends.tvm.kernels.bitserial import (
    binary_convolution,
    binary_table,
    lay_out_words,
    plan_binary_convolution,
    schedule_binary_convolution,
)
from mattecompress.backends.tvm.kernels.integer import (
    integer_convolution,
    integer_depthwise,
    integer_table,
    lay_out_depthwise,
    plan_convolution,
    plan_depthwise,
    schedule_integer_convolution,
    signed_weight,
)
from mattecompress.backends.tvm.kernels.integer import lay_out_words as lay_out_codes
from mattecompress.backends.tvm.kernels.intrinsics import current_target
from mattecompress.backends.tvm.kernels.tiles import Registers, Tile, choose_tile, schedule_tiles
from mattecompress.backends.tvm.kernels.window import (
    MASKED,
    Array,
    Expression,
    Outputs,
    arguments,
    constant,
    geometry,
    image_size,
    result_tile,
)
from mattecompress.backends.tvm.schedules.guard import mark_guarded
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces
from mattecompress.backends.tvm.schedules.stages import child_blocks, inline

RESULT, PATCHES = "masked_result", "patches"
FLOAT = 4


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
    width = arguments(node)["width"]

    def compute(mask: te.Tensor) -> te.Tensor:
        return list_tiles(mask, width)

    return _emit(builder, "mask_tiles", OPAQUE, compute, operands[0], scheduled=True)


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


def emit_gather_tiles(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::gather_tiles`: (N, H, W, C) to (1, K, width, C)."""
    source, tiles = operands
    width = arguments(node)["width"]

    def compute(x: te.Tensor, places: te.Tensor) -> te.Tensor:
        _, height, columns, channels = (int(extent) for extent in x.shape)
        outputs = active_outputs(places, height, columns, width)
        shape = (*outputs.shape, channels)
        return te.compute(shape, lambda n, k, t, c: x(*outputs.place(n, k, t), c), name="gathered_tiles")

    return _emit(builder, "gather_tiles", INJECTIVE, compute, source, tiles)


def emit_scatter_tiles(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::scatter_tiles`: values (1, K, width, C) added to (N, H, W, C)."""

    def compute(values: te.Tensor, tiles: te.Tensor, base: te.Tensor) -> te.Tensor:
        _, height, columns, _ = (int(extent) for extent in base.shape)
        added = spread_tiles(values, tiles, (height, columns))
        return te.compute(base.shape, lambda *index: base(*index) + added(*index), name="scattered")

    return _emit(builder, "scatter_tiles", INJECTIVE, compute, *operands)


def emit_masked_binary_conv2d(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::masked_binary_conv2d`: bits uint8 (N, H, W, groups * B) to int32 (1, K, width, O)."""
    values = arguments(node)
    bits, weight, tiles = operands[0], constant(operands[1]), operands[2]
    plan = plan_binary_convolution(weight, image_size(bits), values, columns=values["width"])
    table = binary_table(weight, values["channels"], plan, values["encoding"], values["border"])
    rows, columns = (plan.window.extent(plan.size[axis], axis) for axis in (0, 1))

    def compute(source: te.Tensor, places: te.Tensor, words: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        outputs = active_outputs(places, rows, columns, values["width"])
        return binary_convolution(source, words, offsets, plan, outputs)

    name = f"masked_binary_convolution_{values['channels']}_{weight.shape[0]}"
    return _emit(builder, name, CONVOLUTION, compute, bits, tiles, lay_out_words(weight, plan), table)


def emit_masked_quantized_conv2d(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::masked_quantized_conv2d`: codes uint8 (N, H, W, C) to int32 (1, K, width, O)."""
    values = arguments(node)
    codes, tiles = operands[0], operands[2]
    channels = int(codes.ty.shape[3])
    weight = signed_weight(constant(operands[1]), channels // values["groups"], values)
    depthwise = values["groups"] == channels == weight.shape[0] and channels > 1
    plan = (plan_depthwise if depthwise else plan_convolution)(
        weight, image_size(codes), values, columns=values["width"]
    )
    lay_out, kernel = (
        (lay_out_depthwise, integer_depthwise) if depthwise else (lay_out_codes, integer_convolution)
    )
    table = integer_table(weight, plan, values["zero_point"])
    rows, columns = (plan.window.extent(plan.size[axis], axis) for axis in (0, 1))

    def compute(source: te.Tensor, places: te.Tensor, words: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        outputs = active_outputs(places, rows, columns, values["width"])
        return kernel(source, words, offsets, plan, outputs)

    name = f"masked_integer_convolution_{channels}_{weight.shape[0]}"
    return _emit(builder, name, CONVOLUTION, compute, codes, tiles, lay_out(weight, plan), table)


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


@dataclass(frozen=True)
class FloatPlan:
    """How one masked float convolution is computed."""

    window: Geometry
    width: int
    groups: int
    tile: Tile


def emit_masked_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::masked_conv2d`: float32 (N, H, W, C), or a view, to (1, K, width, O); sums run over rows, columns, channels."""
    values = arguments(node)
    image = operands[0] if isinstance(operands[0], View) else in_memory(operands[0])
    tiles = in_memory(_expression(operands[-1]))
    weight = constant(operands[1])
    bias = constant(operands[2]) if values["bias"] is not None else np.zeros(weight.shape[0], np.float32)
    registers = Registers.of(current_target())
    tile = choose_tile(weight.shape[0] // values["groups"], values["width"], FLOAT, registers)
    plan = FloatPlan(geometry(weight.shape[2:], values), values["width"], values["groups"], tile)

    def compute(source: te.Tensor, places: te.Tensor, factors: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        return float_convolution(source, places, factors, offsets, plan)

    constants = (in_memory(relax.const(array)) for array in (lay_out_floats(weight, tile), bias))
    view = compose(compute, [image, tiles, *constants])
    return emit(builder, f"masked_convolution_{weight.shape[1]}_{weight.shape[0]}", CONVOLUTION, view)


def lay_out_floats(weight: Array, tile: Tile) -> Array:
    """Weights (O, I, KH, KW) as (O / tile outputs, KH, KW, I, tile outputs)."""
    blocks = weight.reshape(-1, tile.outputs, *weight.shape[1:])
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 2, 1))


def float_convolution(
    source: te.Tensor, tiles: te.Tensor, weight: te.Tensor, bias: te.Tensor, plan: FloatPlan
) -> te.Tensor:
    """The kernel, float32 (1, K, width, O); each step is a fused multiply-add."""
    window, block = plan.window, plan.tile.outputs
    channels, depth = int(weight.shape[0]) * block, int(weight.shape[3])
    rows, columns = (window.extent(int(source.shape[1 + axis]), axis) for axis in (0, 1))
    outputs = active_outputs(tiles, rows, columns, plan.width)
    patches = gather_patches(source, outputs, plan)
    row, column = (te.reduce_axis((0, size), name) for size, name in zip(window.kernel, "kl", strict=True))
    inner = te.reduce_axis((0, depth), "i")

    def total(_: Expression, k: Expression, x: Expression, o: Expression) -> Expression:
        group = o // (channels // plan.groups) * depth if plan.groups > 1 else 0
        value = patches(k, window.tap(0, row, 0), window.tap(x, column, 1), group + inner)
        factor = weight(o // block, row, column, inner, o % block)
        return te.sum(value * factor, axis=[row, column, inner])

    sums = te.compute((*outputs.shape, channels), total, name="total")
    return te.compute(
        sums.shape,
        lambda n, k, x, o: sums(n, k, x, o) + bias(o),
        name=RESULT,
        attrs=outputs.attributes(plan.tile.numbers),
    )


def gather_patches(source: te.Tensor, outputs: Outputs, plan: FloatPlan) -> te.Tensor:
    """What the windows of a tile see of images, (K, rows, columns, C), 0 outside."""
    window, (_, count, width) = plan.window, outputs.shape
    _, height, length, channels = (int(extent) for extent in source.shape)
    sizes = (window.tap(0, window.kernel[0] - 1, 0) + 1, window.tap(width - 1, window.kernel[1] - 1, 1) + 1)

    def element(k: Expression, i: Expression, j: Expression, c: Expression) -> Expression:
        image, top, left = outputs.place(0, k, 0)
        y, x = (
            window.tap(first, 0, axis) + step - window.padding[axis]
            for axis, (first, step) in enumerate(((top, i), (left, j)))
        )
        inside = te.all(y >= 0, y < height, x >= 0, x < length)
        value = source(image, y, x, c)
        if window.padding == (0, 0):
            return value
        return tirx.if_then_else(inside, value, tirx.const(0.0, source.dtype))

    return te.compute((count, *sizes, channels), element, name=PATCHES)


def schedule_masked_convolution(schedule: Any) -> str | None:
    """Tile a function that holds a masked convolution and its epilogue, and end its loop at the list's count.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    if not any(schedule.get(block).annotations.get(MASKED, 0) for block in child_blocks(schedule)):
        return "no masked convolution"
    rules = (schedule_binary_convolution, schedule_integer_convolution, _schedule_floats)
    assert any(rule(schedule) is None for rule in rules)
    mark_guarded(schedule, schedule.get_loops(_sums(schedule))[1])
    return None


def _schedule_floats(schedule: Any) -> str | None:
    numbers = result_tile(schedule, RESULT)
    if numbers is None:
        return "no masked float convolution"
    before = child_blocks(schedule)
    (place,) = (at for at, block in enumerate(before) if schedule.get(block).name_hint == PATCHES)
    inline(schedule, before[:place])
    schedule_tiles(schedule, ("total",), RESULT, Tile(*numbers))
    patches = before[place]
    schedule.compute_at(patches, schedule.get_loops(_sums(schedule))[1], preserve_unit_loops=True)
    schedule.set_scope(patches, 0, "local")
    channels = schedule.get_loops(patches)[-1]
    lanes = Registers.of(current_target()).bytes // FLOAT
    mark(schedule, channels, vector_pieces(int(schedule.get(channels).extent), lanes))
    return None


def _sums(schedule: Any) -> Any:
    """The block that adds up a masked convolution."""
    return next(b for b in child_blocks(schedule) if schedule.get(b).name_hint.startswith("total"))


def _emit(
    builder: relax.BlockBuilder,
    name: str,
    pattern: int,
    compute: Callable[..., te.Tensor],
    *operands: Any,
    scheduled: bool = False,
) -> relax.Var:
    """Call one kernel over activations and constants.

    scheduled: its loops are as they shall be.
    """
    sources = [_expression(each) for each in operands]
    attributes = {"op_pattern": pattern, **({"tirx.is_scheduled": True} if scheduled else {})}
    return builder.emit_te(compute, *sources, primfunc_name_hint=name, primfunc_attrs=attributes)


def _expression(operand: Any) -> relax.Expr:
    return operand if isinstance(operand, relax.Expr) else relax.const(constant(operand))
