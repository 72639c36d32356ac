"""Packing: float activations to bits, eight channels a byte, in tensor expressions.

Meaning, with c the channel that bit i of byte b stands for:

    signs: bit = x[n, y, x, c] >= threshold[c]      units: bit = x[n, y, x, c] > 0.5
    plane 1: bit = s >= 1.5                         plane 0: bit = 0.5 < s < 1.5  or  s > 2.5,  s = 3 x[n, y, x, c]

and 0 beyond the last channel of a group. A pixel's comparisons are made side by side as bytes; then
every eight of them become one byte. The planes are the bits of round(3 clip(x, 0, 1)), halves to even: a tie at 0.5
goes to 0, those at 1.5 and 2.5 to 2. Reference: mattecompress.ops.packing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.operands import INJECTIVE, View, compose
from mattecompress.backends.tvm.kernels.intrinsics import current_target, flag, gather_bits, octets_gathered
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.backends.tvm.kernels.window import Expression, constant, emit_kernel
from mattecompress.backends.tvm.schedules.pieces import (
    PIXEL_LOOP,
    ROW_LOOP,
    condition_cuts,
    mark,
    serial_pieces,
    vector_pieces,
)
from mattecompress.backends.tvm.schedules.stages import child_blocks, inline, place_rows
from mattecompress.ops.binary import bytes_per_group

RESULT, FLAGS = "packed", "flags"
Test = Callable[[Expression, Expression], Expression]
"""From a value and its limit to whether the bit is set."""


def emit_pack_signs(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::pack_signs`: float32 (N, H, W, C) to uint8 (N, H, W, groups * B)."""
    values = arguments_of(node)
    if values["threshold"] is None:
        return _emit(builder, values, operands[0], lambda x, _: x >= tirx.const(0.0, "float32"))
    return _emit(builder, values, operands[0], _reaches, limits_of(operands[1]))


def limits_of(threshold: Any) -> Any:
    """A threshold of `matte::pack_signs` as the kernel takes it, float32 (C,)."""
    return constant(threshold).reshape(-1).astype(np.float32)


def emit_pack_units(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::pack_units`: float32 (N, H, W, C) to uint8 (N, H, W, groups * B)."""
    return _emit(builder, arguments_of(node), operands[0], lambda x, _: x > tirx.const(0.5, "float32"))


def emit_pack_plane(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::pack_plane`: float32 (N, H, W, C) to uint8 (N, H, W, groups * B)."""
    values = arguments_of(node)
    return _emit(builder, values, operands[0], _odd_code if values["plane"] == 0 else _high_code)


def _odd_code(x: Expression, _: Expression) -> Expression:
    steps = x * _number(3)
    return tirx.any(tirx.all(steps > _number(0.5), steps < _number(1.5)), steps > _number(2.5))


def _high_code(x: Expression, _: Expression) -> Expression:
    return x * _number(3) >= _number(1.5)


def _number(value: float) -> Expression:
    return tirx.const(value, "float32")


def packed_signs(source: View, node: fx.Node, limits: View) -> View:
    """What `matte::pack_signs` makes of a source and its thresholds."""
    return compose(_packing(arguments_of(node), _reaches), [source, limits])


def _reaches(x: Expression, limit: Expression) -> Expression:
    return x >= limit


def _emit(
    builder: relax.BlockBuilder, values: dict[str, Any], source: relax.Expr, test: Test, *limits: Any
) -> relax.Var:
    return emit_kernel(builder, "pack", INJECTIVE, _packing(values, test), source, *limits)


def _packing(values: dict[str, Any], test: Test) -> Callable[..., te.Tensor]:
    """`pack` of a node's arguments, from a source and, where the test takes them, limits."""

    def compute(x: te.Tensor, limit: te.Tensor | None = None) -> te.Tensor:
        return pack(x, limit, test, values["groups"], values["word"])

    return compute


def pack(
    source: te.Tensor,
    limits: te.Tensor | None,
    test: Test,
    groups: int,
    word: int,
) -> te.Tensor:
    """The kernel, uint8 (N, H, W, groups * B); `test` gives a channel's bit from its value and its limit."""
    batch, height, width, channels = (int(extent) for extent in source.shape)
    size = channels // groups
    places = 8 * bytes_per_group(size, word)

    def flag_at(n: Expression, y: Expression, x: Expression, place: Expression) -> Expression:
        within, channel = (
            (place, place) if groups == 1 else (place % places, place // places * size + place % places)
        )
        limit = limits(channel) if limits is not None else None
        bit = flag(test(source(n, y, x, channel), limit))
        return bit if size == places else tirx.if_then_else(within < size, bit, tirx.const(0, "uint8"))

    def gather(n: Expression, y: Expression, x: Expression, octet: Expression) -> Expression:
        return gather_bits([flags(n, y, x, octet * 8 + index) for index in range(8)])

    flags = te.compute((batch, height, width, groups * places), flag_at, name=FLAGS)
    return te.compute((batch, height, width, groups * places // 8), gather, name=RESULT)


def schedule_packing(schedule: Any) -> str | None:
    """Compute a function that ends in packings one pixel at a time, comparisons side by side.

    Several packings of one source share its values: each pixel is computed once, then packed by all.
    Loops are marked for `pieces.cut_loops`, to be cut where joined inputs or the padding begin.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    blocks = child_blocks(schedule)
    flags, results = (
        [block for block in blocks if schedule.get(block).name_hint.split("_")[0] == name]
        for name in (FLAGS, RESULT)
    )
    if not results or len(flags) != len(results) or blocks[-1] not in results:
        return "the function does not end in packing"
    if any(var.iter_type != 0 for block in blocks for var in schedule.get(block).iter_vars):
        return "packing follows a reduction"
    lanes = Registers.of(current_target()).bytes // 4
    producers = [block for block in blocks if block not in (*flags, *results)]
    shared = producers[-1:] if len(results) > 1 else []
    inline(schedule, [block for block in producers if block not in shared])
    nests = [_one_pixel(schedule, block, lanes) for block in shared]
    nests += [_pack_pixel(schedule, *pair, lanes) for pair in zip(flags, results, strict=True)]
    place_rows(schedule, nests[0][0], lanes)
    if len(nests) > 1:
        for row, pixel in nests:
            schedule.annotate(row, ROW_LOOP, True)
            schedule.annotate(pixel, PIXEL_LOOP, True)
    return None


def _one_pixel(schedule: Any, block: Any, lanes: int) -> tuple[Any, Any]:
    """Loops over rows and pixels, within which the channels of a block are computed side by side."""
    _, row, pixel, channel = schedule.get_loops(block)
    cuts = condition_cuts(schedule.get(block), 3)
    mark(schedule, channel, vector_pieces(int(schedule.get(channel).extent), lanes, cuts))
    return row, pixel


def _pack_pixel(schedule: Any, flags: Any, result: Any, lanes: int) -> tuple[Any, Any]:
    """The same for comparisons and the bytes that they make."""
    _, row, pixel, octet = schedule.get_loops(result)
    cuts = [condition_cuts(schedule.get(flags), axis) for axis in range(4)]
    if cuts[2]:
        mark(schedule, pixel, serial_pieces(int(schedule.get(pixel).extent), cuts[2]))
    mark(schedule, octet, vector_pieces(int(schedule.get(octet).extent), octets_gathered()))
    schedule.compute_at(flags, pixel, preserve_unit_loops=True)
    place = schedule.get_loops(flags)[-1]
    mark(schedule, place, vector_pieces(int(schedule.get(place).extent), 2 * lanes, cuts[3]))
    return row, pixel
