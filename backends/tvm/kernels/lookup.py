"""Sums of convolutions of packed bits by looking them up, for processors that shuffle bytes faster than they count bits.

Lanes are neighbouring pixels. Four neighbouring channels of a tap are an index into a table of 16 bytes, which stands
in a register and counts where the index differs from the weights of two outputs at once:

    entry[i] = popcount(i ^ w[even output]) + 16 * popcount(i ^ w[odd output])

so that one shuffle takes eight products in every lane. There are 256 such tables; what is stored of the weights is
where theirs start. Halves of bytes hold up to 15: three entries are added before they are taken apart, whole on one side,
modulo 256, and their upper halves alone on the other:

    total = sum of entries,  odd = sum of (three entries >> 4),  even = total - 16 * odd   (mod 256)

Bytes of these sums hold up to 255, then they go to 16 bits. At last lanes of pixels are turned into lanes of outputs.
Indices are in memory as planes, a row after the other, and there in the order of an output's steps: of each tap of a row
of the window and each four of its channels the bytes of a block of pixels. The sums are those of `bitserial.py`.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from mattecompress.backends.tvm.kernels.intrinsics import look_up
from mattecompress.backends.tvm.kernels.lanes import splat
from mattecompress.backends.tvm.kernels.lookup_plan import BITS, LANES, OUTPUTS, TRIPLE, VECTOR, LookupPlan
from mattecompress.backends.tvm.kernels.window import Array, Expression


def entries() -> Array:
    """All tables, uint8 (256 * 16): that of number n counts for the weights n % 16 and n // 16."""
    counts: Array = np.bitwise_count(np.arange(16)[:, None] ^ np.arange(16))
    both: Array = 16 * counts[:, None] + counts[None]
    return both.reshape(-1).astype(np.uint8)


def lay_out_starts(weight: Array, plan: LookupPlan) -> Array:
    """Packed weights (O, KH, KW, B) as starts of tables uint16 (O / 2, KH, steps)."""
    outputs, rows, taps, _ = weight.shape
    unpacked = np.unpackbits(weight, axis=-1, bitorder="little")[..., : plan.channels]
    padded = np.pad(unpacked, [(0, 0)] * 3 + [(0, plan.groups * BITS - plan.channels)])
    indices = padded.reshape(outputs, rows, taps * plan.groups, BITS) @ (1 << np.arange(BITS))
    starts = (16 * (indices[0::2] + 16 * indices[1::2])).astype(np.uint16)
    return np.pad(starts, [(0, 0), (0, 0), (0, plan.steps - taps * plan.groups)])


def lookup_sums(source: te.Tensor, starts: te.Tensor, tables: te.Tensor, plan: LookupPlan) -> te.Tensor:
    """Bits that differ, uint8 or uint16 (N, OH, OW, O), of bits uint8 (N, H, W, B).

    The buffers are as those of other tensor expressions, so that the kernel may be fused with what reads the same bits.
    """
    operands = [source, starts, tables]
    return te.extern(
        [(int(source.shape[0]), *plan.result, plan.outputs)],
        operands,
        lambda inputs, outputs: _look_up_all(inputs[0], (inputs[1], inputs[2]), outputs[0], plan),
        dtype=plan.dtype,
        name="sums",
        in_buffers=[tirx.decl_buffer(each.shape, each.dtype, layout=None) for each in operands],
    )


def _look_up_all(bits: Any, weights: tuple[Any, Any], sums: Any, plan: LookupPlan) -> Any:
    """Band by band: the planes of the rows that its outputs read, then their sums."""
    batch, height, *_ = (int(extent) for extent in sums.shape)
    rows, window = plan.band, plan.window
    with IRBuilder() as ir:
        with T.serial(0, batch) as n, T.serial(0, height // rows) as band:
            planes = T.alloc_buffer(plan.planes, "uint8")
            with T.serial(0, plan.planes[0]) as row:
                _make_planes(bits, planes, (n, band * rows * window.stride[0], row), plan)
            with T.serial(0, rows // plan.block.rows) as part:
                _add_up(planes, weights, sums, (n, band * rows, part * plan.block.rows), plan)
        return ir.get()


def _make_planes(
    bits: Any, planes: Any, place: tuple[Expression, Expression, Expression], plan: LookupPlan
) -> None:
    """planes[row, b, k * groups + g, x]: index g of the pixel under tap k of output x of block b, in a padded row."""
    n, first, row = place
    blocks, steps, pixels = plan.planes[1:]
    taken = plan.window.kernel[1] * plan.groups
    height, above = plan.size[0], plan.window.padding[0]
    y = first + row
    with T.If(tirx.all(y >= above, y < above + height)):
        with T.Then():
            indices = T.alloc_buffer(plan.row, "uint8", scope="local")
            for phase in range(plan.window.stride[1]):
                _make_indices(bits, indices, (n, y - above), phase, plan)
            for tap in range(plan.window.kernel[1]):
                start, phase = divmod(tap * plan.window.dilation[1], plan.window.stride[1])
                with T.serial(0, blocks) as block, T.serial(0, plan.groups) as group:
                    for lane in range(0, pixels, LANES):
                        values = _load(indices, phase, group, _lanes(start + plan.first(block) + lane))
                        T.buffer_store(planes, values, [row, block, tap * plan.groups + group, _lanes(lane)])
            _leave_out(planes, row, (taken, steps))
        with T.Else():
            _leave_out(planes, row, (0, steps))


def _leave_out(planes: Any, row: Expression, steps: tuple[int, int]) -> None:
    """Zeros in some steps of a row."""
    _, blocks, _, pixels = (int(extent) for extent in planes.shape)
    if steps[0] < steps[1]:
        with T.serial(0, blocks) as block, T.serial(*steps) as step:
            T.buffer_store(planes, splat(0, "uint8", pixels), [row, block, step, _lanes(0, pixels)])


def _make_indices(
    bits: Any, row: Any, source: tuple[Expression, Expression], phase: int, plan: LookupPlan
) -> None:
    """row[phase, g, i]: index g of the pixel in column i * stride + phase of the padded image, 0 where it lies outside."""
    stride, left = plan.window.stride[1], plan.window.padding[1]
    inside = plan.inside(phase)
    for outside in (range(inside.start), range(inside.stop, plan.row[-1])):
        if outside:
            with T.serial(0, plan.groups) as group, T.serial(outside.start, outside.stop) as column:
                T.buffer_store(row, tirx.const(0, "uint8"), [phase, group, column])
    with T.serial(0, ceil(len(inside) / LANES)) as part:
        start = tirx.min(inside.start + part * LANES, inside.stop - LANES)
        octets = T.alloc_buffer((ceil(plan.channels / 8), LANES), "uint8")
        pixel = (*source, start * stride + phase - left)
        for place, octet in enumerate(_octets(bits, pixel, plan)):
            T.buffer_store(octets, octet, [place, _lanes(0)])
        for group in range(plan.groups):
            octet = _load(octets, group // 2, _lanes(0))
            index = (
                octet >> splat(BITS, "uint8", LANES)
                if group % 2
                else octet & splat((1 << BITS) - 1, "uint8", LANES)
            )
            T.buffer_store(row, index, [phase, group, _lanes(start)])


def _octets(
    bits: Any, pixel: tuple[Expression, Expression, Expression], plan: LookupPlan
) -> list[Expression]:
    """The bytes of every stride-th pixel's channels, each in a vector, taken from words of as many bytes as fit."""
    n, y, x = pixel
    count = ceil(plan.channels / 8)
    size = min(1 << (count.bit_length() - 1), OUTPUTS)
    found: list[Expression] = []
    for start in [*range(0, count - size, size), count - size]:
        words = [
            tirx.reinterpret(
                f"uint{8 * size}", _load(bits, n, y, x + lane * plan.window.stride[1], _lanes(start, size))
            )
            for lane in range(LANES)
        ]
        lanes = tirx.reinterpret(f"uint8x{LANES * size}", _shuffled(words, range(LANES)))
        octets = range(len(found) - start, size)
        found += [_shuffled([lanes], range(octet, LANES * size, size)) for octet in octets]
    return found


def _add_up(
    planes: Any,
    weights: tuple[Any, Any],
    sums: Any,
    place: tuple[Expression, Expression, Expression],
    plan: LookupPlan,
) -> None:
    """sums[n, first + row, x, o] of some rows, a block of pixels and a word of outputs at a time."""
    n, first, row = place
    of_word = OUTPUTS // np.dtype(plan.dtype).itemsize
    with T.serial(0, plan.blocks) as block, T.serial(0, plan.outputs // of_word) as word:
        turned = T.alloc_buffer((of_word // 2, 2, plan.block.rows, plan.block.pixels), plan.dtype)
        with T.serial(0, of_word // 2) as pair:
            _Counter(
                planes, weights, turned, (row, block), (word * (of_word // 2) + pair, pair), plan
            ).count()
        outputs = _lanes(word * of_word, of_word)
        for below, start in product(range(plan.block.rows), range(0, plan.block.pixels, LANES)):
            for pixel, values in enumerate(_turn(turned, below, start), start):
                if pixel < plan.result[1]:
                    T.buffer_store(sums, values, [n, first + row + below, plan.first(block) + pixel, outputs])


class _Counter:
    """Counts for a pair of outputs at a block of pixels.

    turned: where the sums go, (pairs of a word, 2, rows, pixels). place: first row and number of the block of pixels.
    pair: which of all pairs, and which of `turned`.
    """

    def __init__(
        self,
        planes: Any,
        weights: tuple[Any, Any],
        turned: Any,
        place: tuple[Expression, Expression],
        pair: tuple[Expression, Expression],
        plan: LookupPlan,
    ) -> None:
        self.planes, self.weights, self.turned = planes, weights, turned
        self.place, self.pair, self.plan = place, pair, plan
        self.totals = T.alloc_buffer((len(plan.block.vectors), 2, VECTOR), "uint8")

    def count(self) -> None:
        """Emit the loops over the window."""
        plan = self.plan
        in_bytes = plan.dtype == "uint8"
        self._clear(self.totals, self._total, "uint8")
        self._clear(self.turned, self._turned, plan.dtype)
        with T.serial(0, plan.window.kernel[0]) as row, T.serial(0, plan.chunks) as chunk:
            with T.serial(0, plan.triples) as triple:
                self._add(row, (chunk * plan.triples + triple) * TRIPLE)
            if not in_bytes:
                self._hand_over()
                self._clear(self.totals, self._total, "uint8")
        if in_bytes:
            self._hand_over()

    def _add(self, row: Expression, first: Expression) -> None:
        """Three steps, the first of them at `first` in a row of the window."""
        (y, block), (starts, tables) = self.place, self.weights
        sums = T.alloc_buffer((VECTOR,), "uint8")
        for number, (below, column) in enumerate(self.plan.block.vectors):
            read = self.plan.window.tap(y + below, row, 0)
            values = []
            for step in range(TRIPLE):
                start = _load(starts, self.pair[0], row, first + step).astype("int32")
                index = _load(self.planes, read, block, first + step, _lanes(column * VECTOR, VECTOR))
                values.append(look_up(_load(tables, _lanes(start, 1 << BITS)), index))
            T.buffer_store(sums, values[0] + values[1] + values[2], [_lanes(0, VECTOR)])
            added = _load(sums, _lanes(0, VECTOR))
            for half, value in enumerate((added, added >> splat(BITS, "uint8", VECTOR))):
                place = self._total(number, half)
                T.buffer_store(self.totals, _load(self.totals, *place) + value, place)

    def _hand_over(self) -> None:
        """Add what the totals hold to `turned`."""
        for number in range(len(self.plan.block.vectors)):
            whole, odd = (_load(self.totals, *self._total(number, half)) for half in (0, 1))
            for half, value in enumerate((whole - (odd << splat(BITS, "uint8", VECTOR)), odd)):
                place = self._turned(number, half)
                value = value.astype(f"{self.plan.dtype}x{VECTOR}")
                T.buffer_store(self.turned, _load(self.turned, *place) + value, place)

    def _clear(self, buffer: Any, place: Callable[[int, int], list[Expression]], dtype: str) -> None:
        nothing = splat(0, dtype, VECTOR)
        for number, half in product(range(len(self.plan.block.vectors)), (0, 1)):
            T.buffer_store(buffer, nothing, place(number, half))

    def _total(self, number: int, half: int) -> list[Expression]:
        return [number, half, _lanes(0, VECTOR)]

    def _turned(self, number: int, half: int) -> list[Expression]:
        below, column = self.plan.block.vectors[number]
        return [self.pair[1], half, below, _lanes(column * VECTOR, VECTOR)]


def _turn(turned: Any, row: int, start: int) -> list[Expression]:
    """The outputs of `LANES` pixels from `start` on: neighbours are joined to lanes of twice their size until one is left."""
    pairs, halves, *_ = (int(extent) for extent in turned.shape)
    size = np.dtype(str(turned.dtype)).itemsize
    values = [
        _load(turned, pair, half, row, _lanes(start)) for pair in range(pairs) for half in range(halves)
    ]
    order = [place for lane in range(LANES) for place in (lane, LANES + lane)]
    while len(values) > 1:
        size *= 2
        values = [
            tirx.reinterpret(f"uint{8 * size}x{LANES}", _shuffled(values[place : place + 2], order))
            for place in range(0, len(values), 2)
        ]
    dtype = f"{turned.dtype}x{pairs * halves}"
    return [tirx.reinterpret(dtype, _shuffled(values, [lane])) for lane in range(LANES)]


def _lanes(start: Expression, count: int = LANES) -> Expression:
    return tirx.Ramp(start, 1, count) if count > 1 else start


def _load(buffer: Any, *place: Expression) -> Expression:
    return tirx.BufferLoad(buffer, list(place))


def _shuffled(vectors: Sequence[Expression], order: Sequence[int]) -> Expression:
    return tirx.Shuffle(list(vectors), list(order))
