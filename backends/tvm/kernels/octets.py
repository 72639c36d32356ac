"""The bytes of an image as integer kernels read them: padded once, then loaded as words of neighbouring channels.

A row of the padded copy is one run of bytes, pixel after pixel, so that the words of neighbouring taps may straddle
pixels: a 3-tap row of 5-byte pixels is 15 bytes, four words instead of six.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.kernels.intrinsics import current_target, load_word
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.backends.tvm.schedules.pieces import mark, serial_pieces, vector_pieces
from mattecompress.backends.tvm.schedules.stages import child_blocks, divisors

Expression = Any
GATHERED = "gathered"
GUARD = 32
"""Bytes after a row, for the words loaded together with its last pixel."""
NEAR_REGISTERS = 4096
"""Registers of bytes that a near cache holds."""


@dataclass(frozen=True)
class Octets:
    """A readable image.

    tensor: uint8 (N, H, W, B), or a padded copy (N, H, bytes of a row).
    pixel: bytes from a pixel to the next.
    """

    tensor: te.Tensor
    pixel: int

    def octet(self, n: Expression, row: Expression, column: Expression, place: Expression) -> Expression:
        """The byte at `place` of a pixel."""
        if len(self.tensor.shape) == 4:
            return self.tensor(n, row, column, place)
        return self.tensor(n, row, column * self.pixel + place)

    def word(
        self,
        dtype: str,
        pixel: tuple[Expression, Expression, Expression],
        place: Expression,
        index: Expression,
        count: int,
    ) -> Expression:
        """Word `index` of `count` words of type `dtype` that begin at `place` of a pixel (n, row, column)."""
        size = np.dtype(dtype).itemsize
        first = self.octet(*pixel, place)
        if size == 1:
            return first
        return load_word(dtype, first, self.octet(*pixel, place + size * count - 1), index, count)


def gather(source: te.Tensor, window: Geometry, border: int, flip: bool = False) -> Octets:
    """A padded copy of `source`.

    Args:
        source: uint8 (N, H, W, B).
        window: gives the padding.
        border: the byte outside the image.
        flip: turn over the top bit of every byte, border included.
    """
    batch, height, width, pixel = (int(extent) for extent in source.shape)
    vertical, horizontal = window.padding
    top_bit = tirx.const(0x80 if flip else 0, "uint8")

    def element(n: Expression, i: Expression, place: Expression) -> Expression:
        y, x = i - vertical, place // pixel - horizontal
        inside = [x < width, *([y >= 0, y < height] if vertical else []), *([x >= 0] if horizontal else [])]
        value = source(n, y, x, place % pixel)
        return tirx.if_then_else(te.all(*inside), value, tirx.const(border, "uint8")) ^ top_bit

    shape = (batch, height + 2 * vertical, (width + 2 * horizontal) * pixel + GUARD)
    attributes = {
        "image": [horizontal * pixel, width * pixel, vertical, height],
        "window": [window.stride[0], window.dilation[0] * (window.kernel[0] - 1)],
    }
    return Octets(te.compute(shape, element, name=GATHERED, attrs=attributes), pixel)


def gather_by_rows(schedule: Any, outputs: Any) -> None:
    """Copy a block of rows before the rows of `outputs` that read them, as many as stay in a near cache.

    outputs: the last block, tiled, whose second loop runs over rows of outputs.
    """
    for block in child_blocks(schedule):
        if schedule.get(block).name_hint != GATHERED:
            continue
        left, inside, *_ = (int(extent) for extent in schedule.get(block).annotations["image"])
        stride, reach = (int(extent) for extent in schedule.get(block).annotations["window"])
        octets = int(schedule.get(schedule.get_loops(block)[-1]).extent)
        register = Registers.of(current_target()).bytes
        rows = schedule.get_loops(outputs)[1]
        count = int(schedule.get(rows).extent)
        near = register * NEAR_REGISTERS
        fitting = [number for number in divisors(count) if (number * stride + reach) * octets <= near]
        outer, _ = schedule.split(rows, [None, max(fitting, default=1)])
        schedule.compute_at(block, outer, preserve_unit_loops=True)
        place = schedule.get_loops(block)[-1]
        mark(schedule, place, vector_pieces(octets, register, [left, left + inside]))


def schedule_gathering(schedule: Any) -> None:
    """Copy whole vectors of bytes, with borders apart; loops are marked for `pieces.cut_loops`."""
    for block in child_blocks(schedule):
        if schedule.get(block).name_hint != GATHERED:
            continue
        left, inside, above, height = (int(extent) for extent in schedule.get(block).annotations["image"])
        _, row, place = schedule.get_loops(block)
        rows, octets = (int(schedule.get(loop).extent) for loop in (row, place))
        mark(schedule, row, serial_pieces(rows, [above, above + height]))
        mark(
            schedule,
            place,
            vector_pieces(octets, Registers.of(current_target()).bytes, [left, left + inside]),
        )
