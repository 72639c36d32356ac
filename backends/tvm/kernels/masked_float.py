"""Float convolutions at the active tiles of a mask.

What a tile's windows see of the images is gathered first, into a buffer as small as the tile: no padded copy of the
images is made, and images that are themselves compact, `spread_tiles` of a wider mask's, are read where they lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.operands import CONVOLUTION, View, compose, emit, in_memory
from mattecompress.backends.tvm.kernels.intrinsics import current_target, words_loaded_together
from mattecompress.backends.tvm.kernels.listed import active_outputs, expression, sums_of
from mattecompress.backends.tvm.kernels.tiles import Registers, Tile, choose_tile, schedule_tiles
from mattecompress.backends.tvm.kernels.window import (
    Array,
    Expression,
    Outputs,
    constant,
    geometry,
    result_tile,
)
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces
from mattecompress.backends.tvm.schedules.stages import child_blocks, inline, load_elements

RESULT, PATCHES = "masked_result", "patches"
FLOAT = 4


@dataclass(frozen=True)
class FloatPlan:
    """How one masked float convolution is computed."""

    window: Geometry
    width: int
    groups: int
    tile: Tile


def emit_masked_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::masked_conv2d`: float32 (N, H, W, C), or a view, to (1, K, width, O).

    Sums run over rows, then columns, then channels.
    """
    values = arguments_of(node)
    image = operands[0] if isinstance(operands[0], View) else in_memory(operands[0])
    tiles = in_memory(expression(operands[-1]))
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


def schedule_floats(schedule: Any) -> str | None:
    """Tile a function that holds a masked float convolution and its epilogue.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    numbers = result_tile(schedule, RESULT)
    if numbers is None:
        return "no masked float convolution"
    before = child_blocks(schedule)
    (place,) = (at for at, block in enumerate(before) if schedule.get(block).name_hint == PATCHES)
    inline(schedule, before[:place])
    schedule_tiles(schedule, ("total",), RESULT, Tile(*numbers))
    patches = before[place]
    schedule.compute_at(patches, schedule.get_loops(sums_of(schedule))[1], preserve_unit_loops=True)
    schedule.set_scope(patches, 0, "local")
    channels = schedule.get_loops(patches)[-1]
    lanes = Registers.of(current_target()).bytes // FLOAT
    mark(schedule, channels, vector_pieces(int(schedule.get(channels).extent), lanes))
    _load_channels_together(schedule, lanes)
    return None


def _load_channels_together(schedule: Any, lanes: int) -> None:
    """Where it pays, load neighbouring channels of every pixel as one vector, whose elements multiply the weights."""
    update = schedule.get_sblock("total_update")
    channel = schedule.get_loops(update)[-4]
    count = words_loaded_together(int(schedule.get(channel).extent), lanes, current_target())
    if count == 1:
        return
    outer, inner = schedule.split(channel, [None, count])
    schedule.unroll(inner)
    read = [region.source.name.startswith(PATCHES) for region in schedule.get(update).reads]
    load_elements(schedule, update, read.index(True), outer)
