"""Loops over a list that is as long as the image but filled only so far: they run while the list goes on.

Schedule rules mark such a loop; `guard_loops` puts a condition around its body in the scheduled function, where no
schedule primitive has to understand it any more. The list is the int32 vector [count, entries ...] that the body reads.
"""

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

MARK = "guarded"


def mark_guarded(schedule: Any, loop: Any) -> None:
    """Ask `guard_loops` to guard a loop of a schedule."""
    schedule.annotate(loop, MARK, 1)


def guard_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with the body of every marked loop run only where the loop's variable is below the list's count."""
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, _guard)))


def _guard(loop: tirx.For) -> tirx.Stmt:
    if MARK not in loop.annotations:
        return loop
    count = tirx.BufferLoad(_list_in(loop), [tirx.IntImm("int32", 0)])
    body = tirx.IfThenElse(loop.loop_var < count, loop.body, None)
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)


def _list_in(loop: tirx.For) -> Any:
    """The vector with at least one entry for each step, and the count, that the loop's body reads."""
    found: list[Any] = []

    def visit(load: TensorLoad) -> None:
        shape = [int(size) for size in load.source.ty.shape]
        is_list = len(shape) == 1 and shape[0] > int(loop.extent) and "int32" in str(load.source.ty.dtype)
        if is_list and not any(load.source.same_as(other) for other in found):
            found.append(load.source)

    tvm_ffi.structural_walk(loop.body, (TensorLoad, visit))
    (source,) = found
    return source
