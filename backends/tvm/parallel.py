"""Which loops of a kernel may be divided among threads, proven from the addresses they write.

A loop is divided where every buffer that it writes, and that lives longer than one iteration, has a dimension in which
each iteration keeps to a slab of its own: all its loads and stores there have an index `a * v + rest`, v the loop's
variable, and the rests span fewer than `a` places. So no iteration reads or writes what another one writes, and their
order is free: threads change nothing in the result, not even its last bit.
"""

from math import prod
from typing import Any

import tvm_ffi
from tvm import sym, tirx

from mattecompress.backends.tvm.effects import Effects, number
from mattecompress.backends.tvm.statements import sequence_of, statements_of

ENOUGH_PARTS = 16
ENOUGH_WORK = 1 << 13


def divide_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function without blocks, its outermost independent loops parallel where that is worth a call to threads.

    Loops around each other are divided as one while they have fewer than `ENOUGH_PARTS` iterations.
    """
    statements = [_divide(statement) for statement in statements_of(serial(function.body))]
    return function.with_body(sequence_of(statements))


def serial(statement: Any) -> Any:
    """The statement without parallel loops."""

    def visit(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(statement, (tirx.For, visit))


def _divide(statement: tirx.Stmt) -> tirx.Stmt:
    if not isinstance(statement, tirx.For):
        return statement
    effects = Effects.of(statement)
    chain: list[tirx.For] = []
    inner: Any = statement
    while _is_serial(inner) and _independent(effects, inner):
        chain.append(inner)
        inner = inner.body
        if _parts(chain) >= ENOUGH_PARTS:
            break
    if _parts(chain) < 2 or effects.work < ENOUGH_WORK:
        return statement
    return _joined(chain, inner)


def _is_serial(statement: Any) -> bool:
    return isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.SERIAL


def _parts(chain: list[tirx.For]) -> int:
    return prod(int(loop.extent) for loop in chain)


def _joined(chain: list[tirx.For], body: tirx.Stmt) -> tirx.For:
    """One parallel loop over all iterations of a nest."""
    long = [loop for loop in chain if int(loop.extent) > 1]
    one = long[0].loop_var if len(long) == 1 else tirx.Var("part", chain[0].loop_var.ty.dtype)
    values: list[tuple[tirx.Var, Any]] = []
    rest: Any = one
    for loop in reversed(chain):
        extent = int(loop.extent)
        if extent == 1:
            values.append((loop.loop_var, tirx.const(0, loop.loop_var.ty.dtype)))
        elif loop is long[0]:
            values.append((loop.loop_var, rest))
        else:
            values.append((loop.loop_var, tirx.floormod(rest, loop.extent)))
            rest = tirx.floordiv(rest, loop.extent)

    def replace(variable: tirx.Var) -> Any:
        return next((value for key, value in values if key.same_as(variable)), variable)

    body = tvm_ffi.structural_map(body, (tirx.Var, replace))
    return tirx.For(one, tirx.const(0, one.ty.dtype), _parts(chain), tirx.ForKind.PARALLEL, body)


def _independent(effects: Effects, loop: tirx.For) -> bool:
    """Whether no iteration of a loop in the nest touches what another one writes."""
    once = number(loop.extent) == 1
    return effects.known and all(
        once or _has_slabs(effects.analyzer, accesses, loop.loop_var)
        for accesses in effects.accesses.values()
    )


def _has_slabs(analyzer: sym.Analyzer, accesses: list[Any], variable: tirx.Var) -> bool:
    axes = range(len(accesses[0]))
    return any(_is_slab(analyzer, [indices[axis] for indices in accesses], variable) for axis in axes)


def _is_slab(analyzer: sym.Analyzer, indices: list[Any], variable: tirx.Var) -> bool:
    """Whether all indices are `a * variable + rest` with one `a` that is larger than the span of the rests."""
    factors, lows, highs = set(), [], []
    for index in indices:
        terms = sym.detect_linear_equation(index, [variable])
        factor = number(terms[0]) if len(terms) == 2 else None
        if not factor:
            return False
        bound = analyzer.const_int_bound(terms[1])
        factors.add(factor)
        lows.append(bound.min_value)
        highs.append(bound.max_value)
    return len(factors) == 1 and max(highs) - min(lows) < abs(factors.pop())
