"""What only moves elements: views, so that whoever reads them takes the elements from where they lie.

Images become tokens and tokens images without a view: permuted from NCHW to NHWC, an image is in memory as before.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx
from tvm import te

from mattecompress.backends.tvm.compute.mathematics import constant
from mattecompress.backends.tvm.compute.operands import (
    INJECTIVE,
    LOGICAL_ORDER,
    STORAGE_ORDER,
    Expression,
    Index,
    compose,
    read_as_is,
    select,
)
from mattecompress.backends.tvm.importer.conversion import Conversion, Scope
from mattecompress.program import Program

aten = torch.ops.aten


def _moved(scope: Scope, node: fx.Node, place: Callable[[tuple[Index, ...]], Sequence[Index]]) -> Conversion:
    """The view whose element at an index is the source's at `place(index)`."""
    shape = scope.shape(node)

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *index: x(*place(index)), name="moved")

    return Conversion(compose(compute, [scope.as_is(_source(node))]), "moved", INJECTIVE, True, as_is=True)


def reshape(scope: Scope, node: fx.Node) -> Conversion:
    """Any operation whose result has the elements of its first operand, in their order."""
    groups = matching_groups(scope.shape(_source(node)), scope.shape(node))

    def place(index: tuple[Index, ...]) -> list[Index]:
        result: list[Index] = []
        taken = 0
        for before, after in groups:
            own = index[taken : taken + len(after)]
            taken += len(after)
            result += own if before == after else _split(_joined(own, after), before)
        return result

    return _moved(scope, node, place)


def matching_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two shapes of as many elements, cut into the smallest runs of axes that have as many elements each."""
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    a, b = list(before), list(after)
    while a or b:
        own, other = (a[:1], b[:1]) if a and b else (a, b)
        while a and b and prod(own) != prod(other):
            if prod(own) < prod(other):
                own = a[: len(own) + 1]
            else:
                other = b[: len(other) + 1]
        groups.append((tuple(own), tuple(other)))
        a, b = a[len(own) :], b[len(other) :]
    return groups


def _joined(index: Sequence[Index], shape: Sequence[int]) -> Index:
    place: Index = 0
    for i, size in zip(index, shape, strict=True):
        place = place * size + i
    return place


def _split(place: Index, shape: Sequence[int]) -> list[Index]:
    result: list[Index] = []
    for axis, size in enumerate(shape):
        step = prod(shape[axis + 1 :])
        digit = place // step if step > 1 else place
        result.append(digit % size if axis and size > 1 else digit if size > 1 else 0)
    return result


def permute(scope: Scope, node: fx.Node) -> Conversion:
    """`aten.permute` and `aten.transpose`."""
    source, axes = _source(node), _axes_of(scope, node)
    if axes == STORAGE_ORDER and not scope.are_tokens([source]):
        return Conversion(scope.view(source), "permute", INJECTIVE, done=True, as_is=True)
    if axes == LOGICAL_ORDER and scope.are_tokens([source]):
        return Conversion(scope.as_is(source), "permute", INJECTIVE, done=True)
    return _moved(scope, node, lambda index: [index[axes.index(axis)] for axis in range(len(axes))])


def _axes_of(scope: Scope, node: fx.Node) -> tuple[int, ...]:
    rank = len(scope.shape(node))
    if node.target is aten.permute.default:
        return tuple(int(axis) % rank for axis in node.args[1])  # type: ignore[union-attr,arg-type]
    axes = list(range(rank))
    first, second = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
    axes[first], axes[second] = second, first
    return tuple(axes)


def _select(scope: Scope, node: fx.Node) -> Conversion:
    _, axis, position = node.args
    shape = scope.shape(_source(node))
    at, chosen = int(axis) % len(shape), int(position) % shape[int(axis)]  # type: ignore[arg-type]
    return _moved(scope, node, lambda index: [*index[:at], chosen, *index[at:]])


def _expand(scope: Scope, node: fx.Node) -> Conversion:
    shape = scope.shape(node)

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *index: read_as_is(x, index), name="expand")

    return Conversion(compose(compute, [scope.as_is(_source(node))]), "expand", INJECTIVE, True, as_is=True)


def _pad(scope: Scope, node: fx.Node) -> Conversion:
    source, amounts, *rest = node.args
    assert isinstance(source, fx.Node)
    as_is = scope.are_tokens([source])
    value = float(rest[1]) if len(rest) > 1 and rest[1] is not None else 0.0  # type: ignore[arg-type]
    rank, before = len(scope.shape(source)), [0] * len(scope.shape(source))
    for number in range(len(amounts) // 2):  # type: ignore[arg-type]
        before[rank - 1 - number] = int(amounts[2 * number])  # type: ignore[index,arg-type]
    order = range(rank) if as_is or rank != len(STORAGE_ORDER) else STORAGE_ORDER
    shape, starts = ([values[axis] for axis in order] for values in (scope.shape(node), before))

    def compute(x: te.Tensor) -> te.Tensor:
        def element(*index: Index) -> Expression:
            inside, places = [], []
            for i, start, size, whole in zip(index, starts, x.shape, shape, strict=True):
                inside += [i >= start] if start > 0 else []
                inside += [i < start + size] if whole > start + int(size) else []
                places.append(i - start)
            value_there = x(*places)
            return select(te.all(*inside), value_there, constant(value, x.dtype)) if inside else value_there

        return te.compute(shape, element, name="pad")

    view = scope.as_is(source) if as_is else scope.view(source)
    return Conversion(compose(compute, [view]), "pad", INJECTIVE, done=True, as_is=as_is)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _refuse_pad(program: Program, node: fx.Node) -> str | None:
    mode = node.args[2] if len(node.args) > 2 else "constant"
    return None if mode == "constant" else f"padding is implemented with constants, not by mode {mode}"


RESHAPES = (
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.view_as.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)
CONVERTERS: dict[Any, Callable[[Scope, fx.Node], Conversion]] = {
    **dict.fromkeys(RESHAPES, reshape),
    aten.permute.default: permute,
    aten.transpose.int: permute,
    aten.select.int: _select,
    aten.expand_as.default: _expand,
    aten.expand.default: _expand,
    aten.pad.default: _pad,
}
REFUSALS: dict[Any, Callable[[Program, fx.Node], str | None]] = {aten.pad.default: _refuse_pad}
