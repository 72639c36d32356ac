"""Schedule of everything without a reduction: one loop nest over the result, vectorised along its last axis."""

from typing import Any

import tvm_ffi
from tvm import ir
from tvm.s_tir import Schedule

from mattecompress.backends.tvm.schedules.convolution import Packing
from mattecompress.backends.tvm.schedules.pieces import condition_cuts, mark, serial_pieces, vector_pieces
from mattecompress.backends.tvm.schedules.stages import (
    RefusalError,
    child_blocks,
    inline,
    lanes_of,
    place_rows,
)
from mattecompress.backends.tvm.targets import Target

REDUCTION = 2
PLANES = "to_nchw"
"""Block that stores channels as planes: it takes them row by row, so that what it reads stays near."""


def schedule_injective(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function without reductions.

    Raises:
        RefusalError: it has one.
    """
    blocks = child_blocks(s)
    if any(v.iter_type == REDUCTION for block in blocks for v in s.get(block).iter_vars):
        raise RefusalError("it has a reduction")
    lanes = lanes_of(s, target)
    inline(s, blocks[:-1])
    block = blocks[-1]
    if is_flat(s.get(block)):
        loop = s.fuse(*s.get_loops(block))
        mark(s, loop, vector_pieces(int(s.get(loop).extent), lanes))
        return []
    loops = s.get_loops(block)
    extents = [int(s.get(loop).extent) for loop in loops]
    inner = max((axis for axis, extent in enumerate(extents) if extent > 1), default=len(loops) - 1)
    for axis, loop in enumerate(loops):
        cuts = condition_cuts(s.get(block), axis)
        if axis == inner:
            mark(s, loop, vector_pieces(extents[axis], lanes, cuts))
        elif cuts:
            mark(s, loop, serial_pieces(extents[axis], cuts))
    if len(loops) == 4:
        place_rows(s, loops[1], lanes)
    if s.get(block).name_hint == PLANES and len(child_blocks(s)) == 1:
        images, planes, rows, columns = loops
        s.reorder(images, rows, planes, columns)
    return []


def is_flat(block: Any) -> bool:
    """Whether every element read is at the same place as the element written."""
    variables = [iterator.var for iterator in block.iter_vars]
    (written,) = block.writes
    shape = [int(size) for size in written.source.ty.shape]
    elsewhere: list[Any] = []

    def visit(load: Any) -> None:
        if [int(size) for size in load.source.ty.shape] != shape or not all(
            size == 1 or index.same_as(variable)
            for index, variable, size in zip(load.indices, variables, shape, strict=True)
        ):
            elsewhere.append(load)

    tvm_ffi.structural_walk(block.body, (ir.TensorLoad, visit))
    return not elsewhere
