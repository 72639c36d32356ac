"""Schedule of the frame, the last pass over whole images: row by row, and in each row plane by plane.

for each row: resize what is read at another size, channels side by side, or each for itself where columns come in phases
  for each output, for each of its channels: the row of that plane
"""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.resize import FRAME_ROW, KEPT, PHASES
from mattecompress.backends.tvm.schedules.convolution import Packing
from mattecompress.backends.tvm.schedules.pieces import (
    ROW_LOOP,
    condition_cuts,
    mark,
    serial_pieces,
    vector_pieces,
)
from mattecompress.backends.tvm.schedules.stages import (
    RefusalError,
    child_blocks,
    inline,
    is_contiguous,
    lanes_of,
)
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
    """Let rows be the outer loop, and the last loop run in vectors; columns and channels that follow each other are one."""
    cuts = [condition_cuts(s.get(block), axis) for axis in range(4)]
    lanes = lanes_of(s, target)
    lanes = min(lanes, int(s.get(block).annotations.get(PHASES, lanes)))
    if row == 1 and is_contiguous(s.get(block)):
        s.fuse(*s.get_loops(block)[2:])
    image, *loops, last = s.get_loops(block)
    for axis, loop in enumerate(loops, start=1):
        if cuts[axis] and axis != row:
            mark(s, loop, serial_pieces(int(s.get(loop).extent), cuts[axis]))
    mark(s, last, vector_pieces(int(s.get(last).extent), lanes, cuts[-1]))
    others = [loop for axis, loop in enumerate(loops, start=1) if axis != row]
    s.reorder(image, loops[row - 1], *others, last)
    s.annotate(loops[row - 1], ROW_LOOP, True)
