"""What a kernel of plain loops does to memory: its stores, how often each is executed, and where loads and stores go."""

from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx


@dataclass
class Effects:
    """What some statements do.

    stores: each with how many elements it writes in all. accesses: the indices of all loads and stores of each buffer
    that is stored to and outlives the statements. work: how many stores are executed, a vector counted as one.
    known: whether every statement is understood.
    """

    analyzer: sym.Analyzer = field(default_factory=sym.Analyzer)
    stores: list[tuple[tirx.BufferStore, int]] = field(default_factory=list)
    private: set[Any] = field(default_factory=set)
    accesses: dict[Any, list[Any]] = field(default_factory=dict)
    work: int = 0
    known: bool = True

    @classmethod
    def of(cls, statement: tirx.Stmt) -> "Effects":
        """Of a statement without blocks."""
        effects = cls()
        effects._visit(statement, 1, 1)
        for store, _ in effects.stores:
            if store.buffer not in effects.private:
                effects.accesses.setdefault(store.buffer, []).append(store.indices)

        def visit(load: ir.TensorLoad) -> None:
            if load.source in effects.accesses:
                effects.accesses[load.source].append(load.indices)

        tvm_ffi.structural_walk(statement, (ir.TensorLoad, visit))
        return effects

    def _visit(self, statement: Any, times: int, lanes: int) -> None:
        if isinstance(statement, tirx.For):
            self._enter(statement, times, lanes)
        elif isinstance(statement, tirx.SeqStmt):
            for child in statement.seq:
                self._visit(child, times, lanes)
        elif isinstance(statement, tirx.IfThenElse):
            for child in filter(None, (statement.then_case, statement.else_case)):
                self._visit(child, times, lanes)
        elif isinstance(statement, tirx.AllocBuffer):
            self.private.add(statement.buffer)
        elif isinstance(statement, tirx.BufferStore):
            self.stores.append((statement, times * lanes))
            self.work += times
        else:
            self.known = False

    def _enter(self, loop: tirx.For, times: int, lanes: int) -> None:
        extent = number(loop.extent)
        if number(loop.min) != 0 or extent is None or loop.step is not None:
            self.known = False
            return
        self.analyzer.bind(loop.loop_var, ir.Range(0, extent))
        if loop.kind == tirx.ForKind.VECTORIZED:
            self._visit(loop.body, times, lanes * extent)
        else:
            self._visit(loop.body, times * extent, lanes)


def number(value: Any) -> int | None:
    """The value of a constant, else None."""
    return int(value.value) if isinstance(value, tirx.IntImm) else None
