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
    """The int32 vector whose entry of the step the loop's body reads, behind the count."""
    found: list[Any] = []

    def visit(load: TensorLoad) -> None:
        is_list = len(load.indices) == 1 and "int32" in str(load.source.ty.dtype)
        if is_list and _is_entry(load.indices[0]) and not any(load.source.same_as(other) for other in found):
            found.append(load.source)

    tvm_ffi.structural_walk(loop.body, (TensorLoad, visit))
    (source,) = found
    return source


def _is_entry(index: Any) -> bool:
    """Whether an index is a variable and 1, not the place of anything that the list says."""
    return isinstance(index, tirx.Add) and isinstance(index.a, tirx.Var) and _is_one(index.b)


def _is_one(value: Any) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 1
