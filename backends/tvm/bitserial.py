"""One-bit kernels: packing, convolution and depthwise convolution of packed bits, in tensor expressions.

Meaning, with x the image's bits (0 outside the image) and w the weights' bits, both 0 beyond the last channel:

    result[n, y, x, o] = table[y, x, o] - factor * sum over taps and words of popcount(x ^ w)

    signs: factor 2, table = taps * channels            outside taps: a bit 0 would count as -1, so the table
    units: factor 1, table = popcount(w)                puts back what the border asks for: 0, or +1

since sum(x * w) = taps * channels - 2 * popcount(x ^ w) for x in {-1, 1}, and for x in {0, 1}
2 * popcount(x & w) - popcount(x) = popcount(w) - popcount(x ^ w).

Bits are counted in every byte of a word apart; bytes hold up to 31 counts of 8, then they are added to an int32.
Reference: mattecompress.ops.binary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.backends.tvm.compute_convolution import Geometry
from mattecompress.backends.tvm.intrinsics import (
    accumulate_counts,
    add_bytes,
    add_pairs,
    count_bytes,
    counting,
    current_target,
)
from mattecompress.backends.tvm.operands import CONVOLUTION
from mattecompress.backends.tvm.tiles import Registers, Tile, choose_tile, lanes_of, schedule_tiles
from mattecompress.backends.tvm.window import (
    Array,
    Expression,
    arguments,
    border_table,
    constant,
    emit_kernel,
    gather_words,
    geometry,
    image_size,
    read_table,
    result_tile,
)

RESULT = "binary_result"
STEPS = 31
"""Counts of up to 8 that a byte can hold."""

FACTORS = {"signs": 2, "units": 1}


@dataclass(frozen=True)
class BinaryPlan:
    """How one binary convolution is computed.

    unit: bytes of a word, and of an accumulator's lane.
    words: words per pixel and group.
    chunks: pieces of the window's rows, columns and words whose counts fit a byte.
    """

    window: Geometry
    size: tuple[int, int]
    groups: int
    factor: int
    unit: int
    words: int
    chunks: tuple[int, int, int]
    counting: str
    tile: Tile

    @property
    def in_pairs(self) -> bool:
        """Whether counts go to 16 bits at once, instead of filling bytes first."""
        return self.counting.startswith("pairs")


def emit_binary_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::binary_conv2d`: bits uint8 (N, H, W, groups * B) to int32 (N, OH, OW, O)."""
    values = arguments(node)
    bits, weight = operands[0], constant(operands[1])
    plan = plan_binary_convolution(weight, image_size(bits), values)
    table = binary_table(weight, values["channels"], plan, values["encoding"], values["border"])
    outputs, rows, columns, _ = weight.shape
    name = f"binary_convolution_{rows}x{columns}_{values['channels']}_{outputs}"

    def compute(source: te.Tensor, words: te.Tensor, constants: te.Tensor) -> te.Tensor:
        return binary_convolution(source, words, constants, plan)

    return emit_kernel(builder, name, CONVOLUTION, compute, bits, lay_out_words(weight, plan), table)


def plan_binary_convolution(weight: Array, size: tuple[int, int], values: dict[str, Any]) -> BinaryPlan:
    """The plan for packed weights (O, KH, KW, B), an input of `size` and the node's other arguments."""
    outputs, rows, columns, octets = weight.shape
    window = geometry((rows, columns), values)
    registers = Registers.of(current_target())
    per_group = outputs // values["groups"]
    unit = choose_unit(octets, per_group, registers)
    words = ceil(octets / unit)
    tile = choose_tile(per_group, window.extent(size[1], 1), unit, registers)
    kind = counting(current_target(), unit, tile.lanes, rows * columns * words)
    chunks = choose_chunks(rows, columns, words) if not kind.startswith("pairs") else (1, 1, 1)
    return BinaryPlan(
        window=window,
        size=size,
        groups=values["groups"],
        factor=FACTORS[values["encoding"]],
        unit=unit,
        words=ceil(words / chunks[2]) * chunks[2],
        chunks=chunks,
        counting=kind,
        tile=tile,
    )


def choose_unit(octets: int, outputs: int, registers: Registers) -> int:
    """Bytes of a word: the size that needs fewest vector operations; of equals, the largest."""
    return min(
        (4, 2, 1), key=lambda unit: ceil(octets / unit) * outputs // lanes_of(outputs, unit, registers)
    )


def choose_chunks(rows: int, columns: int, words: int) -> tuple[int, int, int]:
    """Into how many pieces to cut rows, columns and words, so that no piece exceeds `STEPS` words."""
    if rows * columns * words <= STEPS:
        return 1, 1, 1
    if columns * words <= STEPS:
        return rows, 1, 1
    return rows, columns, ceil(words / STEPS)


def binary_table(weight: Array, channels: int, plan: BinaryPlan, encoding: str, border: int) -> Array:
    """The constant part of every output, by border class; see the module's docstring."""
    ones = np.bitwise_count(weight).astype(np.int64).sum(-1).transpose(1, 2, 0)
    signed = 2 * ones - channels
    rows, columns, _ = ones.shape
    if encoding == "signs":
        everywhere, from_outside = np.full(ones.shape[2], rows * columns * channels), signed
    else:
        everywhere, from_outside = ones.sum((0, 1)), np.zeros_like(signed)
    return border_table(plan.window, plan.size, everywhere, from_outside + border * signed)


def lay_out_words(weight: Array, plan: BinaryPlan) -> Array:
    """Packed weights (O, KH, KW, B) as words (O / tile outputs, KH, KW, words, tile outputs)."""
    _, rows, columns, octets = weight.shape
    padded = np.pad(weight, [(0, 0)] * 3 + [(0, plan.words * plan.unit - octets)])
    words = padded.view(f"<u{plan.unit}").reshape(-1, plan.tile.outputs, rows, columns, plan.words)
    return np.ascontiguousarray(words.transpose(0, 2, 3, 4, 1))


def binary_convolution(source: te.Tensor, weight: te.Tensor, table: te.Tensor, plan: BinaryPlan) -> te.Tensor:
    """The kernel, int32 (N, OH, OW, O)."""
    window, (rows, columns) = plan.window, plan.window.kernel
    dtype = f"uint{8 * plan.unit}"
    words = gather_words(source, window, plan.groups, plan.words, dtype, border=0)
    block = plan.tile.outputs
    outputs = int(weight.shape[0]) * block
    shape = (int(source.shape[0]), window.extent(plan.size[0], 0), window.extent(plan.size[1], 1), outputs)
    pieces = [extent // count for extent, count in zip((rows, columns, plan.words), plan.chunks, strict=True)]
    steps = [te.reduce_axis((0, extent), name) for extent, name in zip(pieces, "klm", strict=True)]
    chunks = [te.reduce_axis((0, count), name) for count, name in zip(plan.chunks, "abc", strict=True)]

    accumulate = te.comm_reducer(
        lambda total, counts: accumulate_counts(plan.counting, total, counts),
        lambda dtype: tirx.const(0, dtype),
    )

    def bit_counts(
        n: Expression, y: Expression, x: Expression, o: Expression, *chunk: Expression
    ) -> Expression:
        places = (c * piece + step for c, piece, step in zip(chunk or (0, 0, 0), pieces, steps, strict=True))
        row, column, word = places
        channel = word if plan.groups == 1 else o // (outputs // plan.groups) * plan.words + word
        bits = words(n, window.tap(y, row, 0), window.tap(x, column, 1), channel)
        return count_bytes(bits ^ weight(o // block, row, column, word, o % block))

    def add_up(chunk: Expression) -> Expression:
        if plan.counting == "dot":
            return accumulate(chunk, axis=chunks)
        return te.sum(add_bytes(chunk), axis=chunks)

    if plan.in_pairs:
        total = te.compute(shape, lambda *index: accumulate(bit_counts(*index), axis=steps), name="total")
    else:
        counts = te.compute(
            (*shape, *plan.chunks), lambda *index: te.sum(bit_counts(*index), axis=steps), name="counts"
        )
        total = te.compute(shape, lambda *index: add_up(counts(*index, *chunks)), name="total")
    tile = plan.tile

    def result(n: Expression, y: Expression, x: Expression, o: Expression) -> Expression:
        value = total(n, y, x, o)
        value = add_pairs(plan.counting, value) if plan.in_pairs else value.astype("int32")
        return read_table(table, window, plan.size, y, x, o) - plan.factor * value

    return te.compute(shape, result, name=RESULT, attrs={"tile": [tile.lanes, tile.vectors, tile.pixels]})


def schedule_binary_convolution(schedule: Any) -> str | None:
    """Tile a function that holds a binary convolution and its epilogue.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    numbers = result_tile(schedule, RESULT)
    if numbers is None:
        return "no binary convolution"
    names = [
        schedule.get(block).name_hint for block in schedule.get_child_blocks(schedule.get_sblock("root"))
    ]
    accumulators = [name for name in ("counts", "total") if name in names]
    schedule_tiles(schedule, accumulators, RESULT, Tile(*numbers))
    return None
