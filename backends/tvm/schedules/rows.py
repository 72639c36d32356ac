"""Schedule of softmax and layer norm: one row after the other, all steps while it is near, each in vectors."""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.rows import ROW_FAMILY
from mattecompress.backends.tvm.schedules.convolution import Packing
from mattecompress.backends.tvm.schedules.injective import REDUCTION
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces
from mattecompress.backends.tvm.schedules.stages import RefusalError, child_blocks, family, inline, lanes_of
from mattecompress.backends.tvm.targets import Target


def schedule_rows(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a function of rows.

    Raises:
        RefusalError: it is none.
    """
    *steps, last = child_blocks(s)
    own = [block for block in steps if family(s, block) == ROW_FAMILY]
    if not own:
        raise RefusalError("no function of rows")
    inline(s, [block for block in steps if block not in own])
    loops = s.get_loops(last)
    *_, row, element = loops if len(loops) > 1 else s.split(loops[0], [1, None])
    for block in reversed(own):
        s.compute_at(block, row, preserve_unit_loops=True)
        _vectorize(s, block, target)
    mark(s, element, vector_pieces(int(s.get(element).extent), lanes_of(s, target)))
    return []


def _vectorize(s: Schedule, block: Any, target: Target) -> None:
    kinds = [iterator.iter_type for iterator in s.get(block).iter_vars]
    loops = s.get_loops(block)[-len(kinds) :]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCTION]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != REDUCTION]
    extent = int(s.get(spatial[-1]).extent) if spatial else 1
    if extent == 1:
        return
    if reduced:
        s.reorder(*reduced, spatial[-1])
    mark(s, spatial[-1], vector_pieces(extent, lanes_of(s, target)))
