"""Convolutions as tensor expressions over NHWC.

y[n,h,w,o] = sum over kh, kw, i of x[n, h*s + kh*d - p, w*s + kw*d - p, i] * k[kh,kw,i,o], in that order, each step a
fused multiply-add; the order is part of the contract, since it decides the last bit on every target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import te

from mattecompress.backends.tvm.compute.mathematics import constant
from mattecompress.backends.tvm.compute.operands import Expression, Index, select

CONVOLUTION_FAMILY = "convolution"
DEPTHWISE_FAMILY = "depthwise"


@dataclass(frozen=True)
class Geometry:
    """A window sliding over rows and columns; every pair is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def extent(self, size: int, axis: int) -> int:
        """Output size along an axis."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def tap(self, position: Index, step: Index, axis: int) -> Index:
        """Position in the padded input of a window's element."""
        return position * self.stride[axis] + step * self.dilation[axis]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """That of rows and that of columns, given as one number for both or as two."""
    values = [value, value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def gather(
    x: te.Tensor, padding: tuple[int, int], depth: int, size: tuple[int, int] | None = None
) -> te.Tensor:
    """The input with zeros around it and up to `depth` channels, computing views on the way.

    It is the input itself where there is nothing to do. With `size`, zeros follow up to that many rows and columns.
    """
    rows, columns = padding
    batch, height, width, channels = (int(size) for size in x.shape)
    size = size or (height + 2 * rows, width + 2 * columns)
    if not isinstance(x.op, te.ComputeOp) and (*size, depth) == (height, width, channels):
        return x

    def element(n: Index, i: Index, j: Index, c: Index) -> Expression:
        inside = [i >= rows] if rows else []
        inside += [i < height + rows] if size[0] > height + rows else []
        inside += [j >= columns] if columns else []
        inside += [j < width + columns] if size[1] > width + columns else []
        inside += [c < channels] if depth > channels else []
        value = x(n, i - rows, j - columns, c)
        return select(te.all(*inside), value, constant(0.0, x.dtype)) if inside else value

    return te.compute((batch, *size, depth), element, name="gather")


def convolution(x: te.Tensor, weight: te.Tensor, geometry: Geometry, groups: int = 1) -> te.Tensor:
    """x (N,H,W,I) and weight (KH,KW,I/groups,O) to (N,OH,OW,O); rows of zeros may follow the weights of one group."""
    batch, height, width, _ = (int(size) for size in x.shape)
    kernel_rows, kernel_columns, depth, outputs = (int(size) for size in weight.shape)
    source = gather(x, geometry.padding, depth * groups)
    kh, kw = te.reduce_axis((0, kernel_rows), "kh"), te.reduce_axis((0, kernel_columns), "kw")
    ci = te.reduce_axis((0, depth), "ci")

    def element(n: Index, i: Index, j: Index, o: Index) -> Expression:
        channel = ci if groups == 1 else o // (outputs // groups) * depth + ci
        value = source(n, geometry.tap(i, kh, 0), geometry.tap(j, kw, 1), channel)
        return te.sum(value * weight(kh, kw, ci, o), axis=[kh, kw, ci])

    shape = (batch, geometry.extent(height, 0), geometry.extent(width, 1), outputs)
    return te.compute(shape, element, name="conv", attrs={"family": CONVOLUTION_FAMILY})


def depthwise(x: te.Tensor, weight: te.Tensor, geometry: Geometry) -> te.Tensor:
    """x (N,H,W,C) and weight (KH,KW,C) to (N,OH,OW,C)."""
    batch, height, width, channels = (int(size) for size in x.shape)
    source = gather(x, geometry.padding, channels)
    kh = te.reduce_axis((0, geometry.kernel[0]), "kh")
    kw = te.reduce_axis((0, geometry.kernel[1]), "kw")

    def element(n: Index, i: Index, j: Index, c: Index) -> Expression:
        value = source(n, geometry.tap(i, kh, 0), geometry.tap(j, kw, 1), c)
        return te.sum(value * weight(kh, kw, c), axis=[kh, kw])

    shape = (batch, geometry.extent(height, 0), geometry.extent(width, 1), channels)
    return te.compute(shape, element, name="conv", attrs={"family": DEPTHWISE_FAMILY})
