"""Convolution of packed bits, in tensor expressions.

Meaning, with x the image's bits (0 outside the image) and w the weights' bits, both 0 beyond the last channel:

    result[n, y, x, o] = table[y, x, o] - factor * sum over taps and words of popcount(x ^ w)

    signs: factor 2, table = taps * channels            outside taps: a bit 0 would count as -1, so the table
    units: factor 1, table = popcount(w)                puts back what the border asks for: 0, or +1

since sum(x * w) = taps * channels - 2 * popcount(x ^ w) for x in {-1, 1}, and for x in {0, 1}
2 * popcount(x & w) - popcount(x) = popcount(w) - popcount(x ^ w).

Bits are counted in every byte of a word apart; bytes hold up to 31 counts of 8, then they are added to an int32.
The bytes of a tap are a run of words, and so are those of a row of neighbouring taps, where words may straddle
pixels; bits of a run's last word that belong to others are masked. Reference: mattecompress.ops.binary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.operands import CONVOLUTION, OPAQUE
from mattecompress.backends.tvm.kernels.bounds import find_bounds
from mattecompress.backends.tvm.kernels.intrinsics import (
    accumulate_counts,
    add_bytes,
    add_pairs,
    count_bytes,
    counting,
    current_target,
    instruction_set,
    pack_within,
    words_loaded_together,
)
from mattecompress.backends.tvm.kernels.lookup import entries, lay_out_starts, lookup_sums
from mattecompress.backends.tvm.kernels.lookup_plan import LookupPlan, plan_lookup
from mattecompress.backends.tvm.kernels.octets import Octets, gather, schedule_gathering
from mattecompress.backends.tvm.kernels.tiles import Registers, Tile, choose_tile, lanes_of, schedule_tiles
from mattecompress.backends.tvm.kernels.window import (
    Array,
    Expression,
    Outputs,
    border_table,
    constant,
    emit_kernel,
    geometry,
    image_size,
    read_table,
    result_tile,
)
from mattecompress.backends.tvm.schedules.stages import divisors

Counts = Callable[[Sequence[Expression], Sequence[Expression]], Expression]
"""Bits that differ in each byte of a word, by output and step."""

RESULT, BITS = "binary_result", "binary_bits"
STEPS = 31
"""Counts of up to 8 that a byte can hold."""

LONGEST_RUN = 31
"""Bytes of joined taps; longer runs waste little on their own, and would need to be cut into pieces."""

VECTORS_ABREAST = 2
"""Vectors whose epilogues x86 computes side by side: their operations wait for each other, not for a unit."""

FACTORS = {"signs": 2, "units": 1}


@dataclass(frozen=True)
class BinaryPlan:
    """How one binary convolution is computed.

    octets: bytes of a group's channels, without padding to words.
    joined: the taps of a row are one run of bytes.
    unit: bytes of a word, and of an accumulator's lane.
    words: words of a group, for a tap or, if joined, for a row of taps.
    copied: the kernel reads a padded copy: it needs borders, or the last word of a pixel would leave the image.
    loaded: words that are loaded together.
    chunks: pieces of the window's rows, columns and words whose counts fit a byte.
    counting: as `intrinsics.counting` names it.
    packed: the results are bits.
    """

    window: Geometry
    size: tuple[int, int]
    groups: int
    factor: int
    octets: int
    joined: bool
    unit: int
    words: int
    copied: bool
    loaded: int
    chunks: tuple[int, int, int]
    counting: str
    tile: Tile
    packed: bool

    @property
    def in_pairs(self) -> bool:
        """Whether counts go to 16 bits at once, instead of filling bytes first."""
        return self.counting.startswith("pairs")

    @property
    def taps(self) -> tuple[int, int]:
        """Rows of the window, and runs of bytes in a row."""
        rows, columns = self.window.kernel
        return rows, 1 if self.joined else columns

    @property
    def total_bits(self) -> int:
        """Bits of an output's total."""
        return 16 if self.in_pairs and self.unit == 2 else 32

    @property
    def last_bits(self) -> int:
        """Meaningful bits of a run's last word."""
        run = self.octets * (self.window.kernel[1] if self.joined else 1)
        return 8 * (run - (self.words - 1) * self.unit)


def emit_binary_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::binary_conv2d`: bits uint8 (N, H, W, groups * B) to int32 (N, OH, OW, O)."""
    values = arguments_of(node)
    bits, weight = operands[0], constant(operands[1])
    plan = plan_binary_convolution(weight, image_size(bits), values)
    table = binary_table(weight, values["channels"], plan, values["encoding"], values["border"])
    outputs, rows, columns, _ = weight.shape
    name = f"binary_convolution_{rows}x{columns}_{values['channels']}_{outputs}"
    lookup = plan_lookup(weight, plan.window, plan.size, values["channels"]) if plan.groups == 1 else None
    if lookup is not None:
        return _emit_lookup(builder, name, bits, weight, table, plan, lookup)

    def compute(source: te.Tensor, words: te.Tensor, constants: te.Tensor) -> te.Tensor:
        return binary_convolution(source, words, constants, plan)

    return emit_kernel(builder, name, CONVOLUTION, compute, bits, lay_out_words(weight, plan), table)


def _emit_lookup(
    builder: relax.BlockBuilder,
    name: str,
    bits: relax.Expr,
    weight: Array,
    table: Array,
    plan: BinaryPlan,
    lookup: LookupPlan,
) -> relax.Var:
    """The same, its totals looked up."""

    def compute(source: te.Tensor, starts: te.Tensor, tables: te.Tensor, constants: te.Tensor) -> te.Tensor:
        outputs = Outputs.all(plan.window, plan.size, int(source.shape[0]))
        return _results(lookup_sums(source, starts, tables, lookup), constants, plan, outputs)

    weights = (lay_out_starts(weight, lookup), entries())
    return emit_kernel(builder, name, CONVOLUTION, compute, bits, *weights, table)


def emit_binary_conv2d_bits(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::binary_conv2d_bits`: bits uint8 (N, H, W, groups * B) to bits uint8 (N, OH, OW, O / 8)."""
    values = arguments_of(node)
    bits, weight, low, high = operands[0], *(constant(operand) for operand in operands[1:4])
    plan = plan_binary_convolution(weight, image_size(bits), values, packed=True)
    table = binary_table(weight, values["channels"], plan, values["encoding"], values["border"])
    most = min(int(np.prod(weight.shape[1:])) * 8, 2**plan.total_bits - 2)
    bounds = find_bounds(table, plan.factor, low, high, most, plan.total_bits)
    outputs, rows, columns, _ = weight.shape
    name = f"binary_convolution_bits_{rows}x{columns}_{values['channels']}_{outputs}"

    def compute(source: te.Tensor, words: te.Tensor, start: te.Tensor, span: te.Tensor) -> te.Tensor:
        return binary_convolution_bits(source, words, start, span, plan)

    words = lay_out_words(weight, plan)
    return emit_kernel(builder, name, OPAQUE, compute, bits, words, bounds.start, bounds.span)


def plan_binary_convolution(
    weight: Array,
    size: tuple[int, int],
    values: dict[str, Any],
    packed: bool = False,
    columns: int | None = None,
) -> BinaryPlan:
    """The plan for packed weights (O, KH, KW, B), an input of `size` and the node's other arguments.

    columns: outputs in a row, where they are not those of the image.
    """
    outputs, rows, taps, stored = weight.shape
    window, target = geometry((rows, taps), values), current_target()
    registers = Registers.of(target)
    groups, octets = values["groups"], ceil(values["channels"] / 8)
    joined = groups == 1 and taps > 1 and window.dilation[1] == 1 and octets == stored
    joined = joined and taps * octets <= LONGEST_RUN
    runs, run = (1, taps * octets) if joined else (taps, octets)
    unit = choose_unit(run, outputs // groups, registers, packed)
    words = ceil(run / unit)
    columns = columns or window.extent(size[1], 1)
    tile = choose_tile(outputs // groups, columns, unit, registers, multiple=8 if packed else 1)
    kind = counting(target, unit, tile.lanes, rows * runs * words)
    copied = joined or window.padding != (0, 0) or words * unit > stored
    chunks = (1, 1, 1) if kind.startswith("pairs") else choose_chunks(rows, runs, words)
    return BinaryPlan(
        window=window,
        size=size,
        groups=groups,
        factor=FACTORS[values["encoding"]],
        octets=octets,
        joined=joined,
        unit=unit,
        words=words,
        copied=copied,
        loaded=words_loaded_together(words, 4, target) if kind.startswith("pairs") else 1,
        chunks=chunks,
        counting=kind,
        tile=tile,
        packed=packed,
    )


def choose_unit(run: int, outputs: int, registers: Registers, packed: bool = False) -> int:
    """Bytes of a word: the size that needs fewest vector operations for a run of bytes.

    Of equals, the largest; for packed results on NEON the smallest, whose totals are compared eight at a time.
    """
    sizes = (2, 4) if packed and registers.bytes == 16 else (4, 2)
    return min(sizes, key=lambda unit: ceil(run / unit) * outputs // lanes_of(outputs, unit, registers))


def choose_chunks(rows: int, runs: int, words: int) -> tuple[int, int, int]:
    """Into how many equal pieces to cut rows, runs and words: the fewest of at most `STEPS` words each."""
    choices = product(divisors(rows), divisors(runs), divisors(words))
    return min(
        (pieces for pieces in choices if rows * runs * words <= STEPS * prod(pieces)),
        key=lambda pieces: (prod(pieces), pieces[1:]),
    )


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
    """Packed weights (O, KH, KW, B) as words (O / tile outputs, rows, runs, words, tile outputs)."""
    rows, runs = plan.taps
    taken = weight[..., : plan.octets].reshape(weight.shape[0], rows, runs, -1)
    padded = np.pad(taken, [(0, 0)] * 3 + [(0, plan.words * plan.unit - taken.shape[3])])
    words = (
        np.ascontiguousarray(padded)
        .view(f"<u{plan.unit}")
        .reshape(-1, plan.tile.outputs, rows, runs, plan.words)
    )
    return np.ascontiguousarray(words.transpose(0, 2, 3, 4, 1))


def binary_convolution(
    source: te.Tensor, weight: te.Tensor, table: te.Tensor, plan: BinaryPlan, outputs: Outputs | None = None
) -> te.Tensor:
    """The kernel, int32 (N, OH, OW, O), or of the shape of the given outputs."""
    outputs = outputs or Outputs.all(plan.window, plan.size, int(source.shape[0]))
    return _results(_totals(source, weight, plan, outputs), table, plan, outputs)


def _results(total: te.Tensor, table: te.Tensor, plan: BinaryPlan, outputs: Outputs) -> te.Tensor:
    """What the totals stand for."""

    def result(n: Expression, y: Expression, x: Expression, o: Expression) -> Expression:
        value = total(n, y, x, o)
        value = add_pairs(plan.counting, value) if plan.in_pairs else value.astype("int32")
        _, row, column = outputs.place(n, y, x)
        return read_table(table, plan.window, plan.size, row, column, o) - plan.factor * value

    return te.compute(total.shape, result, name=RESULT, attrs=outputs.attributes(plan.tile.numbers))


def binary_convolution_bits(
    source: te.Tensor, weight: te.Tensor, start: te.Tensor, span: te.Tensor, plan: BinaryPlan
) -> te.Tensor:
    """The kernel that compares its totals, uint8 (N, OH, OW, O / 8)."""
    total = _totals(source, weight, plan, Outputs.all(plan.window, plan.size, int(source.shape[0])))
    *pixels, outputs = total.shape

    def octet(n: Expression, y: Expression, x: Expression, place: Expression) -> Expression:
        def read(lane: int) -> tuple[Expression, ...]:
            o = place * 8 + lane
            return (
                total(n, y, x, o),
                *(read_table(t, plan.window, plan.size, y, x, o) for t in (start, span)),
            )

        return pack_within(plan.counting if plan.total_bits == 32 else "plain", read)

    return te.compute((*pixels, outputs // 8), octet, name=BITS, attrs={"tile": plan.tile.numbers})


def _totals(source: te.Tensor, weight: te.Tensor, plan: BinaryPlan, outputs: Outputs) -> te.Tensor:
    """Counts of every output, (N, OH, OW, O)."""
    octets = gather(source, plan.window, border=0) if plan.copied else Octets(source, int(source.shape[3]))

    def counts(output: Sequence[Expression], step: Sequence[Expression]) -> Expression:
        return _counts(octets, weight, plan, (*outputs.place(*output[:3]), output[3]), step)

    shape = (*outputs.shape, int(weight.shape[0]) * plan.tile.outputs)
    return (_total_in_pairs if plan.in_pairs else _total_in_bytes)(counts, shape, plan)


def _counts(
    octets: Octets,
    weight: te.Tensor,
    plan: BinaryPlan,
    output: Sequence[Expression],
    step: Sequence[Expression],
) -> Expression:
    """Bits that differ in each byte of one word; `step` is (row, run, piece, index of a word in a piece)."""
    (n, y, x, o), (row, run, piece, index) = output, step
    window, tile = plan.window, plan.tile
    per_group = int(weight.shape[0]) * tile.outputs // plan.groups
    pixel = (n, window.tap(y, row, 0), window.tap(x, run, 1))
    group = o // per_group * _group_bytes(octets, plan) if plan.groups > 1 else 0
    word = piece * plan.loaded + index
    dtype = f"uint{8 * plan.unit}"
    bits = octets.word(dtype, pixel, group + piece * (plan.loaded * plan.unit), index, plan.loaded)
    if 0 < plan.last_bits < 8 * plan.unit:
        mask = tirx.const((1 << plan.last_bits) - 1, dtype)
        bits = tirx.Select(word == plan.words - 1, bits & mask, bits)
    return count_bytes(bits ^ weight(o // tile.outputs, row, run, word, o % tile.outputs))


def _group_bytes(octets: Octets, plan: BinaryPlan) -> int:
    return octets.pixel // plan.groups


def _total_in_pairs(counts: Counts, shape: tuple[int, ...], plan: BinaryPlan) -> te.Tensor:
    extents = (*plan.taps, plan.words // plan.loaded, plan.loaded)
    step = [te.reduce_axis((0, extent), name) for extent, name in zip(extents, "klmi", strict=True)]
    add = _adder(plan)
    return te.compute(shape, lambda *o: add(counts(o, step), axis=step), name="total")


def _total_in_bytes(counts: Counts, shape: tuple[int, ...], plan: BinaryPlan) -> te.Tensor:
    extents = [extent // count for extent, count in zip((*plan.taps, plan.words), plan.chunks, strict=True)]
    step = [te.reduce_axis((0, extent), name) for extent, name in zip(extents, "klm", strict=True)]
    chunks = [te.reduce_axis((0, count), name) for count, name in zip(plan.chunks, "abc", strict=True)]

    def in_chunk(*index: Expression) -> Expression:
        place = [chunk * extent + s for chunk, extent, s in zip(index[4:], extents, step, strict=True)]
        return te.sum(counts(index[:4], [*place, 0]), axis=step)

    parts = te.compute((*shape, *plan.chunks), in_chunk, name="counts")
    if plan.counting.startswith("dot"):
        add = _adder(plan)
        return te.compute(shape, lambda *o: add(parts(*o, *chunks), axis=chunks), name="total")
    return te.compute(shape, lambda *o: te.sum(add_bytes(parts(*o, *chunks)), axis=chunks), name="total")


def _adder(plan: BinaryPlan) -> Any:
    return te.comm_reducer(
        lambda total, counts: accumulate_counts(plan.counting, total, counts),
        lambda dtype: tirx.const(0, dtype),
    )


def schedule_binary_convolution(schedule: Any) -> str | None:
    """Tile a function that holds a binary convolution and its epilogue.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    result = next((name for name in (RESULT, BITS) if result_tile(schedule, name)), None)
    if result is None:
        return "no binary convolution"
    names = [
        schedule.get(block).name_hint for block in schedule.get_child_blocks(schedule.get_sblock("root"))
    ]
    accumulators = [name for name in ("counts", "total") if name in names]
    tile = Tile(*result_tile(schedule, result) or [])
    schedule_gathering(schedule)
    abreast = VECTORS_ABREAST if accumulators and instruction_set(current_target()) == "x86" else 1
    schedule_tiles(schedule, accumulators, result, tile, packed=result == BITS, abreast=abreast)
    return None
