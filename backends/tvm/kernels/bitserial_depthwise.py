"""Depthwise convolution of packed bits, in tensor expressions.

Meaning, with x the image's bits (0 outside the image) and w the weights' bits, one filter a channel:

    result[n, y, x, c] = table[y, x, c] - factor * sum over taps of (x ^ w)

    signs: factor 2, table = taps        units: factor 1, table = popcount(w), borders as in `bitserial`

A word of u bytes is looked at through eight lanes: lane j looks at bit j of every byte, so that byte k of lane j
counts for channel 8 * k + j of the word. Bytes of a last word that belong to the next pixel count
for no channel. Reference: mattecompress.ops.binary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.operands import CONVOLUTION, OPAQUE
from mattecompress.backends.tvm.kernels.bitserial import FACTORS
from mattecompress.backends.tvm.kernels.bounds import find_bounds
from mattecompress.backends.tvm.kernels.intrinsics import (
    count_marks,
    current_target,
    mark_bytes,
    pack_octets,
)
from mattecompress.backends.tvm.kernels.octets import gather, schedule_gathering
from mattecompress.backends.tvm.kernels.tiles import Registers, inline_epilogue
from mattecompress.backends.tvm.kernels.window import (
    Array,
    Expression,
    border_table,
    constant,
    emit_kernel,
    geometry,
    image_size,
    read_table,
    result_tile,
)

RESULT, BITS = "binary_depthwise_result", "binary_depthwise_bits"
LANES = 8
PIXELS = 4
MOST_TAPS = 255
"""Counts of 1 that a byte can hold."""
MOST_TAPS_TO_BITS = MOST_TAPS - 1
"""As many where counts are compared with limits: one number is never reached."""


@dataclass(frozen=True)
class DepthwisePlan:
    """How one binary depthwise convolution is computed; `unit` is the bytes of a word."""

    window: Geometry
    size: tuple[int, int]
    channels: int
    factor: int
    unit: int
    words: int
    pixels: int

    @property
    def dtype(self) -> str:
        """Type of a word."""
        return f"uint{8 * self.unit}"


def emit_binary_depthwise_conv2d(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::binary_depthwise_conv2d`: bits uint8 (N, H, W, B) to int32 (N, OH, OW, C).

    Raises:
        ValueError: the kernel has more than 255 taps.
    """
    values = arguments_of(node)
    bits, weight = operands[0], constant(operands[1])
    plan = plan_binary_depthwise(weight, image_size(bits), values)
    table = depthwise_table(weight, plan, values["encoding"], values["border"])
    rows, columns, _ = weight.shape

    def compute(source: te.Tensor, words: te.Tensor, constants: te.Tensor) -> te.Tensor:
        return binary_depthwise(source, words, constants, plan)

    name = f"binary_depthwise_{rows}x{columns}_{plan.channels}"
    return emit_kernel(builder, name, CONVOLUTION, compute, bits, lay_out_words(weight, plan), table)


def emit_binary_depthwise_conv2d_bits(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::binary_depthwise_conv2d_bits`: bits uint8 (N, H, W, B) to bits uint8 (N, OH, OW, C / 8).

    Raises:
        ValueError: the kernel has more than 254 taps.
    """
    values = arguments_of(node)
    bits, weight, low, high = operands[0], *(constant(operand) for operand in operands[1:4])
    plan = plan_binary_depthwise(weight, image_size(bits), values, MOST_TAPS_TO_BITS)
    table = depthwise_table(weight, plan, values["encoding"], values["border"])
    rows, columns, _ = weight.shape
    bounds = find_bounds(table, plan.factor, low, high, rows * columns, 8)

    def compute(source: te.Tensor, words: te.Tensor, start: te.Tensor, span: te.Tensor) -> te.Tensor:
        return binary_depthwise_bits(source, words, start, span, plan)

    name = f"binary_depthwise_bits_{rows}x{columns}_{plan.channels}"
    limits = (spread_over_lanes(bound, plan) for bound in (bounds.start, bounds.span))
    return emit_kernel(builder, name, OPAQUE, compute, bits, lay_out_words(weight, plan), *limits)


def refuse_taps(kernel: tuple[int, int], most: int = MOST_TAPS) -> str | None:
    """Why the taps of a kernel (KH, KW) cannot be counted; None where they can."""
    rows, columns = kernel
    if rows * columns <= most:
        return None
    return f"a binary depthwise kernel of {rows}x{columns} taps: at most {most} are counted"


def plan_binary_depthwise(
    weight: Array, size: tuple[int, int], values: dict[str, Any], most_taps: int = MOST_TAPS
) -> DepthwisePlan:
    """The plan for packed weights (KH, KW, B), an input of `size` and the node's other arguments."""
    rows, columns, _ = weight.shape
    refusal = refuse_taps((rows, columns), most_taps)
    if refusal:
        raise ValueError(refusal)
    window = geometry((rows, columns), values)
    octets = -(-values["channels"] // 8)
    widest = Registers.of(current_target()).bytes // LANES
    unit = min((1, 2, 4, 8)[: widest.bit_length()], key=lambda size: -(-octets // size))
    width = window.extent(size[1], 1)
    return DepthwisePlan(
        window=window,
        size=size,
        channels=values["channels"],
        factor=FACTORS[values["encoding"]],
        unit=unit,
        words=-(-octets // unit),
        pixels=max(count for count in range(1, PIXELS + 1) if width % count == 0),
    )


def depthwise_table(weight: Array, plan: DepthwisePlan, encoding: str, border: int) -> Array:
    """The constant part of every output, by border class."""
    ones = np.unpackbits(weight, axis=-1, bitorder="little")[..., : plan.channels].astype(np.int64)
    signed = 2 * ones - 1
    if encoding == "signs":
        everywhere, from_outside = np.full(plan.channels, ones[..., 0].size), signed
    else:
        everywhere, from_outside = ones.sum((0, 1)), np.zeros_like(signed)
    return border_table(plan.window, plan.size, everywhere, from_outside + border * signed)


def lay_out_words(weight: Array, plan: DepthwisePlan) -> Array:
    """Packed weights (KH, KW, B) as words (KH, KW, words)."""
    size = plan.words * plan.unit
    padded = np.pad(weight[..., :size], [(0, 0), (0, 0), (0, max(0, size - weight.shape[2]))])
    return np.ascontiguousarray(padded).view(f"<u{plan.unit}")


def spread_over_lanes(values: Array, plan: DepthwisePlan) -> Array:
    """Bytes (..., C) as words (..., words, lanes): byte k of lane j belongs to channel 8 * k + j of the word."""
    size = plan.words * plan.unit * LANES
    padded = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, size - values.shape[-1])])
    lanes = padded.reshape(*values.shape[:-1], plan.words, plan.unit, LANES).swapaxes(-1, -2)
    return np.ascontiguousarray(lanes).view(f"<u{plan.unit}")[..., 0]


def binary_depthwise(
    source: te.Tensor, weight: te.Tensor, table: te.Tensor, plan: DepthwisePlan
) -> te.Tensor:
    """The kernel, int32 (N, OH, OW, C)."""
    unit, counts = plan.unit, _counts(source, weight, plan)

    def result(n: Expression, y: Expression, x: Expression, c: Expression) -> Expression:
        shift = (c // LANES % unit * 8).astype(plan.dtype)
        octet = (counts(n, y, x, c // (LANES * unit), c % LANES) >> shift) & tirx.const(255, plan.dtype)
        constant_part = read_table(table, plan.window, plan.size, y, x, c)
        return constant_part - plan.factor * octet.astype("int32")

    attributes = {"tile": [unit, plan.pixels]}
    return te.compute((*counts.shape[:3], plan.channels), result, name=RESULT, attrs=attributes)


def binary_depthwise_bits(
    source: te.Tensor, weight: te.Tensor, start: te.Tensor, span: te.Tensor, plan: DepthwisePlan
) -> te.Tensor:
    """The kernel that compares its counts, uint8 (N, OH, OW, C / 8)."""
    unit, counts = plan.unit, _counts(source, weight, plan)

    def word(n: Expression, y: Expression, x: Expression, place: Expression) -> Expression:
        def read(lane: int) -> tuple[Expression, ...]:
            limits = (read_table(t, plan.window, plan.size, y, x, place, lane) for t in (start, span))
            return (counts(n, y, x, place, lane), *limits)

        return pack_octets(read)

    words = te.compute((*counts.shape[:3], plan.words), word, name="words")

    def octet(n: Expression, y: Expression, x: Expression, place: Expression) -> Expression:
        shift = (place % unit * 8).astype(plan.dtype)
        return (words(n, y, x, place // unit) >> shift).astype("uint8")

    attributes = {"tile": [unit, plan.pixels]}
    return te.compute((*counts.shape[:3], plan.channels // LANES), octet, name=BITS, attrs=attributes)


def _counts(source: te.Tensor, weight: te.Tensor, plan: DepthwisePlan) -> te.Tensor:
    """Taps that differ, (N, OH, OW, words, lanes), in every byte of a lane apart."""
    window, unit = plan.window, plan.unit
    octets = gather(source, window, border=0)
    row, column = (
        te.reduce_axis((0, extent), name) for extent, name in zip(window.kernel, "kl", strict=True)
    )
    add = te.comm_reducer(count_marks, lambda dtype: tirx.const(0, dtype))
    bottoms = tirx.const(int.from_bytes(b"\x01" * unit, "little"), plan.dtype)

    def count(n: Expression, y: Expression, x: Expression, word: Expression, lane: Expression) -> Expression:
        pixel = (n, window.tap(y, row, 0), window.tap(x, column, 1))
        bits = octets.word(plan.dtype, pixel, word * unit, 0, 1) ^ weight(row, column, word)
        return add(mark_bytes(bits, bottoms << lane.astype(plan.dtype)), axis=[row, column])

    outputs = (int(source.shape[0]), window.extent(plan.size[0], 0), window.extent(plan.size[1], 1))
    return te.compute((*outputs, plan.words, LANES), count, name="counts")


def schedule_binary_depthwise(schedule: Any) -> str | None:
    """Tile a function that holds a binary depthwise convolution and its epilogue.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    name = next((name for name in (RESULT, BITS) if result_tile(schedule, name)), None)
    if name is None:
        return "no binary depthwise convolution"
    schedule_gathering(schedule)
    unit, pixels = result_tile(schedule, name) or []
    owner = inline_epilogue(schedule, schedule.get_sblock(name))
    n, y, x, last = schedule.get_loops(owner)
    x_outer, x_inner = schedule.split(x, [None, pixels])
    lanes = [LANES] if name == RESULT else []
    whole = name == BITS or int(schedule.get(last).extent) % LANES == 0
    word, octet, *lane = schedule.split(last, [None, unit, *lanes])
    schedule.reorder(n, y, x_outer, word, x_inner, octet, *lane)
    if name == BITS:
        schedule.compute_at(schedule.get_sblock("words"), x_inner, preserve_unit_loops=True)
    _count_in_registers(schedule, word)
    if whole:
        for loop in lane:
            schedule.vectorize(loop)
        for loop in (octet, x_inner):
            schedule.unroll(loop)
    return None


def _count_in_registers(schedule: Any, word: Any) -> None:
    counts = schedule.get_sblock("counts")
    schedule.compute_at(counts, word, preserve_unit_loops=True)
    _, _, pixel, _, bit, row, column = schedule.get_loops(counts)[-7:]
    schedule.reorder(row, column, pixel, bit)
    schedule.vectorize(bit)
    for loop in (pixel, column):
        schedule.unroll(loop)
    schedule.decompose_reduction(counts, row)
