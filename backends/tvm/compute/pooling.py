"""Pooling and means as tensor expressions over NHWC; sums run over columns first, then over rows.

Sums of float16 values are taken in float32, since a plane of them would overflow, and means rounded once.
"""

from collections.abc import Callable

from tvm import te, tirx

from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.mathematics import constant, like, quotient, single
from mattecompress.backends.tvm.compute.operands import Expression, Index, select

POOLING_FAMILY = "pooling"


def average_pool(
    x: te.Tensor, geometry: Geometry, shape: tuple[int, int], include_padding: bool, divisor: int | None
) -> te.Tensor:
    """x (N,H,W,C) to (N,*shape,C); windows may reach over the edge, where nothing is added.

    divisor: what sums are divided by; None: the number of elements in the window.
    """
    sizes = (int(x.shape[1]), int(x.shape[2]))
    total = _windows(x, geometry, shape, 0.0, te.sum, single)

    def count(position: Index, axis: int) -> Expression:
        start = position * geometry.stride[axis] - geometry.padding[axis]
        end = tirx.min(start + geometry.kernel[axis], sizes[axis] + geometry.padding[axis])
        if include_padding:
            return end - start
        return tirx.min(end, sizes[axis]) - tirx.max(start, 0)

    def element(n: Index, i: Index, j: Index, c: Index) -> Expression:
        if divisor is not None:
            return quotient(total(n, i, j, c), constant(float(divisor))).astype(x.dtype)
        return quotient(total(n, i, j, c), (count(i, 0) * count(j, 1)).astype("float32")).astype(x.dtype)

    return te.compute(total.shape, element, name="average")


def max_pool(x: te.Tensor, geometry: Geometry, shape: tuple[int, int]) -> te.Tensor:
    """x (N,H,W,C) to (N,*shape,C)."""
    return _windows(x, geometry, shape, float(tirx.min_value(x.dtype).value), te.max, lambda value: value)


def _windows(
    x: te.Tensor,
    geometry: Geometry,
    shape: tuple[int, int],
    outside: float,
    reduce: Expression,
    widen: Callable[[Expression], Expression],
) -> te.Tensor:
    batch, height, width, channels = (int(size) for size in x.shape)
    kh = te.reduce_axis((0, geometry.kernel[0]), "kh")
    kw = te.reduce_axis((0, geometry.kernel[1]), "kw")
    reaches = [
        geometry.padding[axis] > 0 or geometry.tap(shape[axis] - 1, geometry.kernel[axis] - 1, axis) >= size
        for axis, size in enumerate((height, width))
    ]

    def element(n: Index, i: Index, j: Index, c: Index) -> Expression:
        row = geometry.tap(i, kh, 0) - geometry.padding[0]
        column = geometry.tap(j, kw, 1) - geometry.padding[1]
        inside = [row >= 0, row < height] if reaches[0] else []
        inside += [column >= 0, column < width] if reaches[1] else []
        value = widen(x(n, row, column, c))
        if inside:
            value = select(te.all(*inside), value, like(value, outside))
        return reduce(value, axis=[kh, kw])

    return te.compute((batch, *shape, channels), element, name="window", attrs={"family": POOLING_FAMILY})


def plane_mean(x: te.Tensor) -> te.Tensor:
    """x (N,H,W,C) to its mean over H and W, (N,1,1,C): the sums of rows, then their sum."""
    batch, height, width, channels = (int(size) for size in x.shape)
    kh, kw = te.reduce_axis((0, height), "kh"), te.reduce_axis((0, width), "kw")
    rows = te.compute(
        (batch, height, 1, channels),
        lambda n, i, j, c: te.sum(single(x(n, i, kw, c)), axis=kw),
        name="rows",
        attrs={"family": POOLING_FAMILY},
    )
    total = te.compute(
        (batch, 1, 1, channels),
        lambda n, i, j, c: te.sum(rows(n, kh, 0, c), axis=kh),
        name="plane",
        attrs={"family": POOLING_FAMILY},
    )
    return te.compute(
        total.shape,
        lambda n, i, j, c: quotient(total(n, i, j, c), constant(float(height * width))).astype(x.dtype),
        name="mean",
    )


def channel_mean(x: te.Tensor) -> te.Tensor:
    """x (N,H,W,C) to its mean over C, (N,H,W,1)."""
    batch, height, width, channels = (int(size) for size in x.shape)
    c = te.reduce_axis((0, channels), "c")
    total = te.compute(
        (batch, height, width, 1),
        lambda n, i, j, o: te.sum(single(x(n, i, j, c)), axis=c),
        name="channels",
        attrs={"family": POOLING_FAMILY},
    )
    return te.compute(
        total.shape,
        lambda n, i, j, o: quotient(total(n, i, j, o), constant(float(channels))).astype(x.dtype),
        name="mean",
    )


def few_channels_mean(x: te.Tensor) -> te.Tensor:
    """`channel_mean` without a reduction: the sum is written out."""
    batch, height, width, channels = (int(size) for size in x.shape)

    def element(n: Index, i: Index, j: Index, o: Index) -> Expression:
        total = single(x(n, i, j, 0))
        for c in range(1, channels):
            total = total + single(x(n, i, j, c))
        return quotient(total, constant(float(channels))).astype(x.dtype)

    return te.compute((batch, height, width, 1), element, name="mean")
