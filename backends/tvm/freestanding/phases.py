"""Cuts a lowered kernel where its threads must wait for each other, and finds its working memory.

A parallel loop at the top of a kernel becomes a function of its own that runs a range of iterations; what stands
between two such loops becomes a function that one thread runs. Memory that outlives a phase is shared by all threads,
memory of an iteration belongs to the thread that runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx

from mattecompress.backends.tvm.freestanding.arena import align
from mattecompress.backends.tvm.freestanding.plan import ITEM_BYTES, PlanError
from mattecompress.backends.tvm.parallel import serial
from mattecompress.backends.tvm.statements import sequence_of, statements_of

STACK_BYTES = {"global": 1024, "local": 65536}


@dataclass(frozen=True)
class Phase:
    """One function over bare pointers: inputs, outputs, shared scratch if the kernel has any.

    extent: iterations of its loop, and the function takes three arguments more: the thread's own scratch, and the first
    iteration and the one after the last; None where it is no loop.
    """

    function: tirx.PrimFunc
    extent: int | None


@dataclass(frozen=True)
class Kernel:
    """The phases of a kernel in their order; shared, local: bytes of scratch of all threads together and of each."""

    phases: tuple[Phase, ...]
    shared: int
    local: int


def cut_phases(function: tirx.PrimFunc, name: str) -> Kernel:
    """The phases of a function that has been lowered with its parallel loops.

    Raises:
        PlanError: it allocates memory of a size unknown until it runs.
    """
    return _Cutter(function, name).cut()


class _Scratch:
    """A block of working memory in which buffers are placed one after the other."""

    def __init__(self, variable: str) -> None:
        self.pointer = tirx.Var(variable, tvm.ir.PointerType(tvm.ir.PrimType("uint8"), "global"))
        self.used = 0

    def place(self, buffer: Any, size: int) -> tirx.DeclBuffer:
        start = tirx.call_intrin(
            self.pointer.ty, "tirx.handle_add_byte_offset", self.pointer, tirx.const(self.used, "int32")
        )
        self.used += align(size)
        pointer = tirx.call_intrin(tvm.ir.PointerType(buffer.ty.dtype, "global"), "tirx.reinterpret", start)
        return tirx.DeclBuffer(buffer, data=pointer)


class _Cutter:
    """The one computation of `cut_phases`."""

    def __init__(self, function: tirx.PrimFunc, name: str) -> None:
        self.function, self.name = function, name
        self.shared, self.local = _Scratch("shared"), 0
        self.pointers = [
            tirx.Var(buffer.name, tvm.ir.PointerType(buffer.ty.dtype, "global")) for buffer in function.params
        ]

    def cut(self) -> Kernel:
        statements = statements_of(self.function.body)
        groups = _groups(statements)
        views = [tirx.DeclBuffer(b, data=p) for b, p in zip(self.function.params, self.pointers, strict=True)]
        others = [statement for statement in statements if isinstance(statement, tirx.DeclBuffer)]
        own: list[list[Any]] = [[] for _ in groups]
        for statement in statements:
            if isinstance(statement, tirx.AllocBuffer):
                users = [
                    index for index, part in enumerate((*groups, others)) if _uses(part, statement.buffer)
                ]
                if len(users) == 1 and users[0] < len(groups) and not _is_loop(groups[users[0]]):
                    own[users[0]].append(statement)
                else:
                    views.append(self.shared.place(statement.buffer, self._bytes(statement.buffer)))
            elif isinstance(statement, tirx.DeclBuffer | tirx.Bind):
                views.append(statement)
        bodies = [self._phase(mine, group) for mine, group in zip(own, groups, strict=True)]
        return Kernel(tuple(self._close(views, *body) for body in bodies), self.shared.used, self.local)

    def _phase(self, own: Sequence[Any], group: Sequence[Any]) -> tuple[tirx.Stmt, _Scratch | None, Any]:
        """The statements of a phase, their scratch if it is a loop's, and the loop."""
        if not _is_loop(group):
            return self._hoist(sequence_of([*own, *group]), self.shared), None, None
        local = _Scratch("local")
        loop = self._hoist(group[0], local)
        self.local = max(self.local, local.used)
        return loop, local, loop

    def _close(self, views: Sequence[Any], body: Any, local: _Scratch | None, loop: Any) -> Phase:
        parameters = [*self.pointers, *([self.shared.pointer] if self.shared.used else [])]
        if local is None:
            return Phase(self._function(parameters, [*views, body]), None)
        begin, end = (tirx.Var(name, loop.loop_var.ty.dtype) for name in ("begin", "end"))
        part = tirx.For(loop.loop_var, begin, end - begin, tirx.ForKind.SERIAL, loop.body)
        function = self._function([*parameters, local.pointer, begin, end], [*views, part])
        return Phase(function, int(loop.extent))

    def _function(self, parameters: Sequence[Any], statements: Sequence[Any]) -> tirx.PrimFunc:
        return tirx.PrimFunc(list(parameters), sequence_of(statements), None, self.function.attrs)

    def _hoist(self, statement: Any, scratch: _Scratch) -> Any:
        """The statement with allocations too large for the stack moved to scratch, and nothing parallel."""

        def visit(allocation: tirx.AllocBuffer) -> Any:
            size = self._bytes(allocation.buffer)
            if size <= STACK_BYTES[allocation.buffer.scope()]:
                return allocation
            return scratch.place(allocation.buffer, size)

        return tvm_ffi.structural_map(serial(statement), (tirx.AllocBuffer, visit))

    def _bytes(self, buffer: Any) -> int:
        item, _, lanes = str(buffer.dtype).partition("x")
        try:
            total = ITEM_BYTES[item] * int(lanes or 1)
            for extent in buffer.shape:
                total *= int(extent)
        except (KeyError, TypeError) as error:
            raise PlanError(
                f"kernel {self.name}: cannot tell the size of {buffer.name}, {buffer.dtype}"
            ) from error
        return total


def _groups(statements: Sequence[Any]) -> list[list[Any]]:
    """Statements that compute, in runs: a parallel loop by itself, and what stands between two of them."""
    groups: list[list[Any]] = []
    for statement in statements:
        if isinstance(statement, tirx.DeclBuffer | tirx.Bind | tirx.AllocBuffer):
            continue
        if groups and not _is_loop([statement]) and not _is_loop(groups[-1]):
            groups[-1].append(statement)
        else:
            groups.append([statement])
    return groups


def _is_loop(group: Sequence[Any]) -> bool:
    return isinstance(group[0], tirx.For) and group[0].kind == tirx.ForKind.PARALLEL


def _uses(statements: Sequence[Any], buffer: Any) -> bool:
    found = False

    def visit(variable: ir.Var) -> None:
        nonlocal found
        found |= variable.same_as(buffer)

    for statement in statements:
        tvm_ffi.structural_walk(statement, (ir.Var, visit))
    return found
