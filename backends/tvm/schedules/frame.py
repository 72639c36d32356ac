"""Schedule of the frame, the last pass over whole images: row by row, and in each row plane by plane.

for each row: resize what is read at another size, channels side by side
  for each output, for each of its channels: the row of that plane
"""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.resize import FRAME_ROW, KEPT
from mattecompress.backends.tvm.schedules.convolution import Packing
from mattecompress.backends.tvm.schedules.pieces import (
    ROW_LOOP,
    condition_cuts,
    mark,
    serial_pieces,
    vector_pieces,
)
from mattecompress.backends.tvm.schedules.stages import RefusalError, child_blocks, inline, lanes_of
from mattecompress.backends.tvm.targets import Target


def schedule_frame(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a function whose outputs are planes that read resized rows.

    Raises:
        RefusalError: it is none.
    """
    blocks = child_blocks(s)
    if not any(str(s.get(block).annotations.get(KEPT, "")) == FRAME_ROW for block in blocks):
        raise RefusalError("it reads no resized rows")
    outputs = [block for block in blocks if not s.get_consumers(block)]
    inline(s, [block for block in blocks if block not in outputs])
    for block in child_blocks(s):
        _schedule_row(s, block, target, row=1 if s.get_consumers(block) else 2)
    return []


def _schedule_row(s: Schedule, block: Any, target: Target, row: int) -> None:
    loops, cuts = s.get_loops(block), [condition_cuts(s.get(block), axis) for axis in range(4)]
    for axis, loop in enumerate(loops):
        extent = int(s.get(loop).extent)
        if axis == len(loops) - 1:
            mark(s, loop, vector_pieces(extent, lanes_of(s, target), cuts[axis]))
        elif cuts[axis] and axis != row:
            mark(s, loop, serial_pieces(extent, cuts[axis]))
    others = [loop for axis, loop in enumerate(loops) if axis not in (0, row)]
    s.reorder(loops[0], loops[row], *others)
    s.annotate(loops[row], ROW_LOOP, True)
