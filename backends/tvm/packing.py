"""Packing: float activations to bits, eight channels a byte, in tensor expressions.

Meaning, with c the channel that bit i of byte b stands for:

    signs: bit = x[n, y, x, c] >= threshold[c]      units: bit = x[n, y, x, c] > 0.5

and 0 beyond the last channel of a group. A pixel's comparisons are made side by side as bytes of 0 or 1; then
every eight of them become one byte. Reference: mattecompress.ops.binary.
"""

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from mattecompress.backends.tvm.intrinsics import current_target, gather_bits
from mattecompress.backends.tvm.operands import INJECTIVE
from mattecompress.backends.tvm.tiles import Registers
from mattecompress.backends.tvm.window import Expression, arguments, constant, emit_kernel
from mattecompress.ops.binary import bytes_per_group

RESULT, FLAGS, REST = "packed", "flags", "rest"


def emit_pack_signs(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::pack_signs`: float32 (N, H, W, C) to uint8 (N, H, W, groups * B)."""
    values = arguments(node)
    if values["threshold"] is None:
        return _emit(builder, values, operands[0], lambda x, _: x >= tirx.const(0.0, "float32"))
    limits = constant(operands[1]).reshape(-1).astype(np.float32)
    return _emit(builder, values, operands[0], lambda x, limit: x >= limit, limits)


def emit_pack_units(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::pack_units`: float32 (N, H, W, C) to uint8 (N, H, W, groups * B)."""
    return _emit(builder, arguments(node), operands[0], lambda x, _: x > tirx.const(0.5, "float32"))


def _emit(
    builder: relax.BlockBuilder,
    values: dict[str, Any],
    source: relax.Expr,
    test: Callable[[Expression, Expression], Expression],
    *limits: Any,
) -> relax.Var:
    def compute(x: te.Tensor, limit: te.Tensor | None = None) -> te.Tensor:
        return pack(x, limit, test, values["groups"], values["word"])

    return emit_kernel(builder, "pack", INJECTIVE, compute, source, *limits)


def pack(
    source: te.Tensor,
    limits: te.Tensor | None,
    test: Callable[[Expression, Expression], Expression],
    groups: int,
    word: int,
) -> te.Tensor:
    """The kernel, uint8 (N, H, W, groups * B); `test` gives a channel's bit from its value and its limit.

    Channels that fill whole bytes, in the order of the bytes, are `flags`; the others and the padding are `rest`.
    """
    batch, height, width, channels = (int(extent) for extent in source.shape)
    size = channels // groups
    places = 8 * bytes_per_group(size, word)
    whole = channels if size == places else channels // 8 * 8 if groups == 1 else 0

    def bit(n: Expression, y: Expression, x: Expression, channel: Expression) -> Expression:
        limit = limits(channel) if limits is not None else None
        return test(source(n, y, x, channel), limit).astype("uint8")

    def ragged_bit(n: Expression, y: Expression, x: Expression, index: Expression) -> Expression:
        place = index + whole
        value = bit(n, y, x, place // places * size + place % places)
        return tirx.if_then_else(place % places < size, value, tirx.const(0, "uint8"))

    image = (batch, height, width)
    total = groups * places
    flags = te.compute((*image, whole), bit, name=FLAGS) if whole else None
    rest = te.compute((*image, total - whole), ragged_bit, name=REST) if whole < total else None

    def octet_of(
        flag: te.Tensor, n: Expression, y: Expression, x: Expression, place: Expression
    ) -> Expression:
        return gather_bits([flag(n, y, x, place + index) for index in range(8)])

    def gather(n: Expression, y: Expression, x: Expression, octet: Expression) -> Expression:
        if rest is None:
            return octet_of(flags, n, y, x, octet * 8)
        from_rest = octet_of(rest, n, y, x, octet * 8 - whole)
        if flags is None:
            return from_rest
        return tirx.if_then_else(octet < whole // 8, octet_of(flags, n, y, x, octet * 8), from_rest)

    return te.compute((*image, total // 8), gather, name=RESULT)


def schedule_packing(schedule: Any) -> str | None:
    """Compute a function that ends in packing one pixel at a time, comparisons side by side.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    names = [schedule.get(block).name_hint for block in blocks]
    if names[-1] != RESULT:
        return "the function does not end in packing"
    if any(var.iter_type != 0 for block in blocks for var in schedule.get(block).iter_vars):
        return "packing follows a reduction"
    comparisons = [block for block, name in zip(blocks, names, strict=True) if name in (FLAGS, REST)]
    for block in blocks[: -1 - len(comparisons)]:
        schedule.compute_inline(block)
    pixel = schedule.get_loops(blocks[-1])[2]
    lanes = 2 * Registers.of(current_target()).bytes // 4
    for block in comparisons:
        schedule.compute_at(block, pixel, preserve_unit_loops=True)
        loop = schedule.get_loops(block)[-1]
        width = gcd(int(schedule.get(loop).extent), lanes)
        if schedule.get(block).name_hint == FLAGS:
            schedule.vectorize(schedule.split(loop, [None, width])[1])
    return None
