"""What a kernel does with the elements of its inputs: whether its result may take an input's place, or only moves it.

All is read off the stores and loads of a kernel of plain loops. A kernel writes every element of its results; where its
stores are as many as these elements, it writes each of them once.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from mattecompress.backends.tvm.effects import Effects
from mattecompress.backends.tvm.schedules.pieces import with_own_names
from mattecompress.backends.tvm.statements import statements_of


def overwritable(function: tirx.PrimFunc) -> list[tuple[int, int]]:
    """Pairs of parameters, an input and an output, that may be one memory.

    Every element of such an input is read before the output is begun, or for the same element of the output, which is
    written once, afterwards.
    """
    effects, parameters = Effects.of(function.body), list(function.params)
    if not effects.known:
        return []
    written = {store.buffer for store, _ in effects.stores}
    loads = _loads(function.body)
    return [
        (i, o)
        for o, result in enumerate(parameters)
        for i, source in enumerate(parameters)
        if result in written
        and source not in written
        and _type(source) == _type(result)
        and not any(load.source.same_as(result) for load in loads)
        and _is_read_in_time(function, effects, source, result)
    ]


def overwriting(function: tirx.PrimFunc, source: int, result: int) -> tirx.PrimFunc:
    """The function with parameter `result` holding the values of parameter `source` when it begins."""
    old, new = function.params[source], function.params[result]

    def visit(load: ir.TensorLoad) -> Any:
        return tirx.BufferLoad(new, list(load.indices)) if load.source.same_as(old) else load

    return function.with_body(with_own_names(tvm_ffi.structural_map(function.body, (ir.TensorLoad, visit))))


def permutation(function: tirx.PrimFunc) -> tuple[int, ...] | None:
    """For a kernel that only transposes its one input: for each axis of the result, that of the input; else None."""
    effects = Effects.of(function.body)
    if len(function.params) != 2 or not effects.known or not effects.stores:
        return None
    source, result = function.params
    values = [store.value for store, _ in effects.stores]
    if not all(isinstance(value, ir.TensorLoad) and value.source.same_as(source) for value in values):
        return None
    if not all(store.buffer.same_as(result) for store, _ in effects.stores) or not _once(effects, result):
        return None
    axes = _match(effects, source, result)
    moved = axes is not None and all(
        _equal(effects, [value.indices[axis] for axis in axes], store.indices)
        for (store, _), value in zip(effects.stores, values, strict=True)
    )
    return axes if moved else None


def _match(effects: Effects, source: Any, result: Any) -> tuple[int, ...] | None:
    """For each axis of the result, the first free one of the source with the same index in the first store."""
    store = effects.stores[0][0]
    shapes = [list(map(int, buffer.ty.shape)) for buffer in (source, result)]
    axes: list[int] = []
    for axis, index in enumerate(store.indices):
        for other, candidate in enumerate(store.value.indices):
            fits = other not in axes and shapes[0][other] == shapes[1][axis]
            if fits and effects.analyzer.can_prove_equal(index, candidate):
                axes.append(other)
                break
    return tuple(axes) if len(axes) == len(shapes[0]) == len(shapes[1]) else None


def _is_read_in_time(function: tirx.PrimFunc, effects: Effects, source: Any, result: Any) -> bool:
    stores = [store for store, _ in effects.stores if store.buffer.same_as(result)]
    elementwise = [
        load
        for store in stores
        for load in _loads(store.value)
        if load.source.same_as(source) and _equal(effects, load.indices, store.indices)
    ]
    statements = statements_of(function.body)
    begun = next(i for i, statement in enumerate(statements) if _stores_to(statement, result))
    late = [load for part in statements[begun:] for load in _loads(part) if load.source.same_as(source)]
    return len(late) == len(elementwise) and _once(effects, result)


def _stores_to(statement: Any, buffer: Any) -> bool:
    return any(store.buffer.same_as(buffer) for store, _ in Effects.of(statement).stores)


def _once(effects: Effects, result: Any) -> bool:
    total = sum(elements for store, elements in effects.stores if store.buffer.same_as(result))
    return total == prod(map(int, result.ty.shape))


def _equal(effects: Effects, ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return all(effects.analyzer.can_prove_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _loads(value: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, found.append))
    return found


def _type(buffer: Any) -> tuple[tuple[int, ...], str]:
    return tuple(map(int, buffer.ty.shape)), str(buffer.dtype)
