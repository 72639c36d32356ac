"""Float convolutions at the active tiles of a mask.

What a tile's windows see of the images is gathered first, into a buffer as small as the tile: no padded copy of the
images is made, and images that are themselves compact, `spread_tiles` of a wider mask's, are read where they lie.

Windows three pixels wide are filtered along their rows by Winograd's F(4, 3), six products for four outputs in place of
twelve, where that saves more than its transforms cost: a tile is one row, so that nothing can be shared among rows.
With B, G and A of `compute.winograd`, for every four outputs of a tile and the six pixels d that they see in a row,

    Y = A^T [ sum over rows and channels of (G g) * (B^T d) ]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.operands import CONVOLUTION, View, compose, emit, in_memory
from mattecompress.backends.tvm.compute.winograd import PATCH, TILE, WEIGHT_TRANSFORM, input_sum, output_sum
from mattecompress.backends.tvm.kernels.intrinsics import current_target, words_loaded_together
from mattecompress.backends.tvm.kernels.listed import active_outputs, expression, sums_of
from mattecompress.backends.tvm.kernels.tiles import (
    Registers,
    Tile,
    choose_tile,
    inline_epilogue,
    schedule_tiles,
)
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

RESULT, TOTAL, PATCHES, FILTERED = "masked_result", "total", "patches", "filtered"
UPDATE = f"{TOTAL}_update"
FLOAT = 4
WORTHWHILE = 0.7
INPUT_STEPS, OUTPUT_STEPS = 23, 17
"""Vector instructions of a transform for four outputs of a row and one channel, loads and stores included."""
ABREAST = 2
"""Of the six sums of products, how many are added up at once: two outputs alone do not fill the registers."""


@dataclass(frozen=True)
class FloatPlan:
    """How one masked float convolution is computed.

    filtered: by F(4, 3) along rows; the tile's pixels are then four outputs each.
    """

    window: Geometry
    width: int
    groups: int
    filtered: bool
    tile: Tile


def emit_masked_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::masked_conv2d`: float32 (N, H, W, C), or a view, to (1, K, width, O).

    Sums run over rows, then columns, then channels; filtered ones over rows, then channels.
    """
    values = arguments_of(node)
    image = operands[0] if isinstance(operands[0], View) else in_memory(operands[0])
    tiles = in_memory(expression(operands[-1]))
    weight = constant(operands[1])
    bias = constant(operands[2]) if values["bias"] is not None else np.zeros(weight.shape[0], np.float32)
    plan = plan_float_convolution(weight, values)

    def compute(source: te.Tensor, places: te.Tensor, factors: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        return float_convolution(source, places, factors, offsets, plan)

    constants = (in_memory(relax.const(array)) for array in (lay_out_floats(weight, plan), bias))
    view = compose(compute, [image, tiles, *constants])
    return emit(builder, f"masked_convolution_{weight.shape[1]}_{weight.shape[0]}", CONVOLUTION, view)


def plan_float_convolution(weight: Array, values: dict[str, Any]) -> FloatPlan:
    """The plan for weights (O, I, KH, KW) and the node's other arguments."""
    window, width, groups = geometry(weight.shape[2:], values), values["width"], values["groups"]
    filtered = _suits_filtering(window, width, *weight.shape[:2])
    pixels = width // TILE if filtered else width
    tile = choose_tile(weight.shape[0] // groups, pixels, FLOAT, Registers.of(current_target()))
    return FloatPlan(window, width, groups, filtered, tile)


def _suits_filtering(window: Geometry, width: int, outputs: int, inputs: int) -> bool:
    """Whether F(4, 3) along rows takes fewer steps, with `inputs` channels of a group."""
    if (window.kernel[1], window.stride[1], window.dilation[1]) != (3, 1, 1) or width % TILE:
        return False
    direct, filtered = (steps * window.kernel[0] * inputs * outputs for steps in (3 * TILE, PATCH))
    transforms = INPUT_STEPS * window.kernel[0] * inputs + OUTPUT_STEPS * outputs
    return filtered + transforms < WORTHWHILE * direct


def lay_out_floats(weight: Array, plan: FloatPlan) -> Array:
    """Weights (O, I, KH, KW) as (O / tile outputs, KH, KW, I, tile outputs), KW those of the filter where there is one."""
    if plan.filtered:
        exact = np.einsum("al,oikl->oika", WEIGHT_TRANSFORM, weight.astype(np.float64))
        weight = exact.astype(weight.dtype)
    blocks = weight.reshape(-1, plan.tile.outputs, *weight.shape[1:])
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 2, 1))


def float_convolution(
    source: te.Tensor, tiles: te.Tensor, weight: te.Tensor, bias: te.Tensor, plan: FloatPlan
) -> te.Tensor:
    """The kernel, float32 (1, K, width, O); each step is a fused multiply-add."""
    rows, columns = (plan.window.extent(int(source.shape[1 + axis]), axis) for axis in (0, 1))
    outputs = active_outputs(tiles, rows, columns, plan.width)
    patches = gather_patches(source, outputs, plan)
    sums = (_filtered_sums if plan.filtered else _direct_sums)(patches, weight, outputs, plan)
    return te.compute(
        (*outputs.shape, int(bias.shape[0])),
        lambda n, k, x, o: sums(n, k, x, o) + bias(o),
        name=RESULT,
        attrs=outputs.attributes(plan.tile.numbers),
    )


Sums = Callable[[Expression, Expression, Expression, Expression], Expression]
"""From an output's index to the sum that it is made of."""


def _direct_sums(patches: te.Tensor, weight: te.Tensor, outputs: Outputs, plan: FloatPlan) -> Sums:
    row, column = (_axis(size, name) for size, name in zip(plan.window.kernel, "kl", strict=True))
    inner = _axis(int(weight.shape[3]), "i")

    def total(_: Expression, k: Expression, x: Expression, o: Expression) -> Expression:
        y, x = plan.window.tap(0, row, 0), plan.window.tap(x, column, 1)
        value = patches(k, y, x, _first_channel(o, weight, plan) + inner)
        return te.sum(value * _factor(weight, o, row, column, inner), axis=[row, column, inner])

    sums: Sums = te.compute((*outputs.shape, _channels(weight)), total, name=TOTAL)
    return sums


def _filtered_sums(patches: te.Tensor, weight: te.Tensor, outputs: Outputs, plan: FloatPlan) -> Sums:
    count, rows, _, depth = (int(extent) for extent in patches.shape)
    fours, inner = plan.width // TILE, _axis(int(weight.shape[3]), "i")
    row = _axis(plan.window.kernel[0], "k")
    filtered = te.compute(
        (count, rows, fours, PATCH, depth),
        lambda k, y, four, j, c: input_sum(j, [patches(k, y, four * TILE + i, c) for i in range(PATCH)]),
        name=FILTERED,
    )

    def product(k: Expression, j: Expression, four: Expression, o: Expression) -> Expression:
        y = plan.window.tap(0, row, 0)
        value = filtered(k, y, four, j, _first_channel(o, weight, plan) + inner)
        return te.sum(value * _factor(weight, o, row, j, inner), axis=[row, inner])

    products = te.compute((count, PATCH, fours, _channels(weight)), product, name=TOTAL)
    return lambda _, k, x, o: output_sum(x % TILE, [products(k, j, x // TILE, o) for j in range(PATCH)])


def _axis(extent: int, name: str) -> Any:
    return te.reduce_axis((0, extent), name)


def _channels(weight: te.Tensor) -> int:
    return int(weight.shape[0]) * int(weight.shape[4])


def _first_channel(o: Expression, weight: te.Tensor, plan: FloatPlan) -> Expression:
    """The first channel of an output's group."""
    depth = int(weight.shape[3])
    return o // (_channels(weight) // plan.groups) * depth if plan.groups > 1 else 0


def _factor(weight: te.Tensor, o: Expression, *place: Expression) -> Expression:
    block = int(weight.shape[4])
    return weight(o // block, *place, o % block)


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
    names = [schedule.get(block).name_hint for block in before]
    inline(schedule, before[:place])
    channel = (_schedule_filter if FILTERED in names else _schedule_direct)(schedule, Tile(*numbers))
    patches = before[place]
    schedule.compute_at(patches, schedule.get_loops(sums_of(schedule))[1], preserve_unit_loops=True)
    schedule.set_scope(patches, 0, "local")
    channels = schedule.get_loops(patches)[-1]
    lanes = Registers.of(current_target()).bytes // FLOAT
    mark(schedule, channels, vector_pieces(int(schedule.get(channels).extent), lanes))
    _load_channels_together(schedule, channel, lanes)
    return None


def _schedule_direct(schedule: Any, tile: Tile) -> Any:
    """Tile by tile of registers; gives the loop over channels."""
    schedule_tiles(schedule, (TOTAL,), RESULT, tile)
    return schedule.get_loops(schedule.get_sblock(UPDATE))[-4]


def _schedule_filter(schedule: Any, tile: Tile) -> Any:
    """For each tile of the mask its transform, the sums of products, and theirs with the epilogue.

    Gives the loop over channels.
    """
    owner = inline_epilogue(schedule, schedule.get_sblock(RESULT))
    _, k, x, o = schedule.get_loops(owner)
    vectors, lane = schedule.split(o, [None, tile.lanes])
    four, output = schedule.split(x, [None, TILE])
    schedule.reorder(four, vectors, lane, output)
    schedule.vectorize(lane)
    schedule.unroll(output)
    channel = _schedule_products(schedule, k, tile)
    _schedule_input(schedule, k)
    return channel


def _schedule_products(schedule: Any, place: Any, tile: Tile) -> Any:
    total = schedule.get_sblock(TOTAL)
    schedule.compute_at(total, place, preserve_unit_loops=True)
    schedule.set_scope(total, 0, "local")
    j, four, o, row, inner = schedule.get_loops(total)[-5:]
    pairs, j = schedule.split(j, [None, ABREAST])
    fours, four = schedule.split(four, [None, tile.pixels])
    blocks, vector, lane = schedule.split(o, [None, tile.vectors, tile.lanes])
    schedule.reorder(pairs, fours, blocks, row, inner, j, four, vector, lane)
    schedule.vectorize(lane)
    for loop in (pairs, j, four, vector):
        schedule.unroll(loop)
    schedule.decompose_reduction(total, row)
    return inner


def _schedule_input(schedule: Any, place: Any) -> None:
    filtered = schedule.get_sblock(FILTERED)
    schedule.compute_at(filtered, place, preserve_unit_loops=True)
    schedule.set_scope(filtered, 0, "local")
    j, channel = schedule.get_loops(filtered)[-2:]
    lanes = Registers.of(current_target()).bytes // FLOAT
    schedule.reorder(channel, j)
    mark(schedule, channel, vector_pieces(int(schedule.get(channel).extent), lanes))
    schedule.unroll(j)


def _load_channels_together(schedule: Any, channel: Any, lanes: int) -> None:
    """Where it pays, load neighbouring channels of every pixel as one vector, whose elements multiply the weights."""
    update = schedule.get_sblock(UPDATE)
    count = words_loaded_together(int(schedule.get(channel).extent), lanes, current_target())
    if count == 1:
        return
    outer, inner = schedule.split(channel, [None, count])
    schedule.unroll(inner)
    read = [region.source.name.startswith((PATCHES, FILTERED)) for region in schedule.get(update).reads]
    load_elements(schedule, update, read.index(True), outer)
