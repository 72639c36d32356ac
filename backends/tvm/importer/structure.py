"""Slices, joins, resizes, pooling and means."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import te

from mattecompress import ops
from mattecompress.backends.tvm.compute.convolution import Geometry, pair
from mattecompress.backends.tvm.compute.operands import (
    INJECTIVE,
    OPAQUE,
    STORAGE_ORDER,
    Expression,
    Index,
    compose,
    emit,
    in_memory,
    select,
    storage_shape,
)
from mattecompress.backends.tvm.compute.pooling import (
    average_pool,
    channel_mean,
    few_channels_mean,
    max_pool,
    plane_mean,
)
from mattecompress.backends.tvm.compute.resize import resize_bilinear, resize_in_phases
from mattecompress.backends.tvm.importer.absorption import FEW_CHANNELS
from mattecompress.backends.tvm.importer.conversion import Conversion, Scope, refuse_other_ranks
from mattecompress.ops.resize import Taps, phases, taps
from mattecompress.program import Program

assert ops
aten, matte = torch.ops.aten, torch.ops.matte

BITS = {
    matte.pack_signs.default,
    matte.pack_units.default,
    matte.binary_conv2d_bits.default,
    matte.binary_depthwise_conv2d_bits.default,
}
"""Operations whose results are stored in the order they are given, not as NHWC."""


def _slice(scope: Scope, node: fx.Node) -> Conversion:
    source, axis, start, _, step = _filled(node, (None, 0, None, None, 1))
    as_is = scope.are_tokens([source])
    size = scope.shape(source)[axis]
    start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    rank, as_given = len(scope.shape(source)), as_is or source.target in BITS
    at = STORAGE_ORDER.index(axis % rank) if rank == 4 and not as_given else axis % rank
    shape = scope.shape(node) if as_given else storage_shape(scope.shape(node))

    def compute(x: te.Tensor) -> te.Tensor:
        def element(*index: Index) -> Expression:
            return x(*(i * step + start if position == at else i for position, i in enumerate(index)))

        return te.compute(shape, element, name="slice")

    view = scope.as_is(source) if as_is else scope.view(source)
    return Conversion(compose(compute, [view]), "slice", INJECTIVE, as_is=as_is)


def _join(scope: Scope, node: fx.Node) -> Conversion:
    sources, axis = _filled(node, (None, 0))
    rank, as_is = len(scope.shape(node)), scope.are_tokens(sources)
    at = STORAGE_ORDER.index(axis % rank) if rank == 4 and not as_is else axis % rank
    shape = scope.shape(node) if as_is else storage_shape(scope.shape(node))
    ends = np.cumsum([scope.shape(source)[axis] for source in sources]).tolist()
    starts = [0, *ends[:-1]]

    def compute(*tensors: te.Tensor) -> te.Tensor:
        def element(*index: Index) -> Expression:
            place = index[at]
            pieces = [
                tensor(*(place - start if position == at else i for position, i in enumerate(index)))
                for tensor, start in zip(tensors, starts, strict=True)
            ]
            value = pieces[-1]
            for piece, end in zip(pieces[-2::-1], ends[-2::-1], strict=True):
                value = select(place < end, piece, value)
            return value

        return te.compute(shape, element, name="join")

    if as_is:
        views = [scope.as_is(source) for source in sources]
    else:
        few = [rank == 4 and scope.shape(source)[1] <= FEW_CHANNELS for source in sources]
        views = [
            scope.sample(source) if some else scope.view(source)
            for source, some in zip(sources, few, strict=True)
        ]
    return Conversion(compose(compute, views), "join", INJECTIVE, as_is=as_is)


def _resize(scope: Scope, node: fx.Node) -> Conversion:
    source, _, align_corners, scales = _filled(node, (None, None, False, None))
    sizes, results = scope.shape(source)[2:], scope.shape(node)[2:]
    scales = scales or (None, None)
    rows, columns = (
        taps(size, result, scale, align_corners)
        for size, result, scale in zip(sizes, results, scales, strict=True)
    )
    dtype, few = scope.dtype(node), scope.shape(source)[1] <= FEW_CHANNELS
    image = scope.sample(source) if few else scope.view(source)
    found = phases(columns, sizes[1]) if scope.in_frame else None
    compute: Callable[..., te.Tensor]
    if found is None:
        tables = [*_tables(rows, dtype), *_tables(columns, dtype)]
        compute = partial(resize_bilinear, keep=scope.in_frame)
    else:
        tables = [*_tables(rows, dtype), found.weights.astype(dtype)]
        compute = partial(resize_in_phases, factor=found.factor, shift=found.shift)
    operands = [image, *(scope.constant(table) for table in tables)]
    return Conversion(compose(compute, operands), "resize", INJECTIVE)


def _tables(axis: Taps, dtype: str) -> list[np.ndarray[Any, Any]]:
    return [np.stack([axis.low, axis.high]), np.stack([axis.near, axis.far]).astype(dtype)]


def _average_pool(scope: Scope, node: fx.Node) -> Conversion:
    source, kernel, stride, padding, _, include, divisor = _filled(
        node, (None, None, [], 0, False, True, None)
    )
    geometry = Geometry(pair(kernel), pair(stride or kernel), pair(padding), (1, 1))
    shape = scope.shape(node)[2:]

    def compute(x: te.Tensor) -> te.Tensor:
        return average_pool(x, geometry, shape, include, divisor)  # type: ignore[arg-type]

    return Conversion(compose(compute, [scope.view(source)]), "average_pool", OPAQUE)


def _max_pool(scope: Scope, node: fx.Node) -> Conversion:
    source, kernel, stride, padding, dilation, _ = _filled(node, (None, None, [], 0, 1, False))
    geometry = Geometry(pair(kernel), pair(stride or kernel), pair(padding), pair(dilation))
    shape = scope.shape(node)[2:]

    def compute(x: te.Tensor) -> te.Tensor:
        return max_pool(x, geometry, shape)  # type: ignore[arg-type]

    return Conversion(compose(compute, [scope.view(source)]), "max_pool", OPAQUE)


def _plane_mean(scope: Scope, node: fx.Node) -> Conversion:
    return Conversion(compose(plane_mean, [scope.view(node.args[0])]), "plane_mean", OPAQUE)  # type: ignore[arg-type]


def _mean(scope: Scope, node: fx.Node) -> Conversion:
    if _axes(node) == {1, 2}:
        return _grid_mean(scope, node)
    compute = channel_mean if _axes(node) == {1} else plane_mean
    if scope.in_frame:
        return Conversion(compose(few_channels_mean, [scope.view(node.args[0])]), "mean", INJECTIVE)  # type: ignore[arg-type]
    return Conversion(compose(compute, [scope.view(node.args[0])]), compute.__name__, OPAQUE)  # type: ignore[arg-type]


def _grid_mean(scope: Scope, node: fx.Node) -> Conversion:
    """Of tokens (N,H,W,C), which are in memory as images of C channels are."""
    shape = scope.shape(node)
    mean = in_memory(emit(scope.builder, "mean", OPAQUE, compose(plane_mean, [scope.as_is(node.args[0])])))  # type: ignore[arg-type]

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda n, *index: x(n, 0, 0, index[-1]), name="mean")

    return Conversion(compose(compute, [mean]), "mean", INJECTIVE, done=True, as_is=True)


def _refuse_adaptive(program: Program, node: fx.Node) -> str | None:
    size = [int(value) for value in _filled(node, ())[1]]
    if size == [1, 1]:
        return refuse_other_ranks(program, node)
    return f"adaptive pooling to {size} is not implemented, only to [1, 1]"


def _refuse_mean(program: Program, node: fx.Node) -> str | None:
    keeps = len(node.args) > 2 and bool(node.args[2])
    image = len(program.facts(node.args[0]).shape) == 4  # type: ignore[arg-type]
    if image and (_axes(node) == {1, 2} or (keeps and _axes(node) in ({1}, {2, 3}))):
        return None
    return (
        "a mean must keep its dimensions and run over channels or over the plane of an image, or over tokens"
    )


def _axes(node: fx.Node) -> set[int]:
    return {int(axis) % 4 for axis in _filled(node, ())[1]}


def _filled(node: fx.Node, defaults: Sequence[Any]) -> tuple[Any, ...]:
    return (*node.args, *defaults[len(node.args) :])


CONVERTERS: dict[Any, Callable[[Scope, fx.Node], Conversion]] = {
    aten.slice.Tensor: _slice,
    aten.cat.default: _join,
    aten.upsample_bilinear2d.vec: _resize,
    aten.adaptive_avg_pool2d.default: _plane_mean,
    aten.avg_pool2d.default: _average_pool,
    aten.max_pool2d.default: _max_pool,
    aten.mean.dim: _mean,
    matte.plane_mean.default: _plane_mean,
    matte.resize_bilinear.default: _resize,
}
REFUSALS: dict[Any, Callable[[Program, fx.Node], str | None]] = {
    aten.adaptive_avg_pool2d.default: _refuse_adaptive,
    aten.avg_pool2d.default: refuse_other_ranks,
    aten.max_pool2d.default: refuse_other_ranks,
    aten.mean.dim: _refuse_mean,
}
