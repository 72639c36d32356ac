"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): 36 instead of 144 products for 16 results.

Y = A^T [ (G g G^T) * sum over channels of (B^T d B) ] A for every tile d of 6x6 inputs, 16 results apart by 4
(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4.3; matrices of interpolation
points 0, 1, -1, 2, -2). Sums are written out below, so that common parts are computed once and every target rounds
them alike.
"""

from collections.abc import Sequence

import numpy as np
from tvm import te

from mattecompress.backends.tvm.compute.convolution import Geometry, gather
from mattecompress.backends.tvm.compute.mathematics import like
from mattecompress.backends.tvm.compute.operands import Array, Expression, Index, select

WINOGRAD_FAMILY = "winograd"
TILE, PATCH = 4, 6
WEIGHT_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_WORTHWHILE = 0.7
_TRANSFORM_STEPS = (
    90  # vector instructions per tile and channel in both transforms, loads and stores included
)


def suits_winograd(geometry: Geometry, size: Sequence[int], inputs: int, outputs: int, groups: int) -> bool:
    """Whether the transforms cost less than they save, for a result of `size` (rows, columns)."""
    if (geometry.kernel, geometry.stride, geometry.dilation, groups) != ((3, 3), (1, 1), (1, 1), 1):
        return False
    tiles = -(-size[0] // TILE) * -(-size[1] // TILE)
    direct = 9 * size[0] * size[1] * inputs * outputs
    transformed = tiles * (PATCH**2 * inputs * outputs + _TRANSFORM_STEPS * (inputs + outputs))
    return transformed < _WORTHWHILE * direct


def transform_weight(weight: Array) -> Array:
    """(3,3,I,O) to G g G^T, (6,6,I,O), rounded once."""
    exact: Array = np.einsum(
        "ai,bj,ijco->abco", WEIGHT_TRANSFORM, WEIGHT_TRANSFORM, weight.astype(np.float64)
    )
    return exact.astype(weight.dtype)


def winograd(x: te.Tensor, weight: te.Tensor, geometry: Geometry) -> te.Tensor:
    """x (N,H,W,I) and transformed weight (6,6,I,O) to (N,OH,OW,O)."""
    batch, height, width, _ = (int(size) for size in x.shape)
    _, _, depth, outputs = (int(size) for size in weight.shape)
    rows, columns = geometry.extent(height, 0), geometry.extent(width, 1)
    down, across = -(-rows // TILE), -(-columns // TILE)
    source = gather(x, geometry.padding, depth, (down * TILE + 2, across * TILE + 2))
    vertical = te.compute(
        (batch, down, PATCH, across * TILE + 2, depth),
        lambda n, t, i, w, c: input_sum(i, [source(n, t * TILE + k, w, c) for k in range(PATCH)]),
        name="vertical",
    )
    patches = te.compute(
        (batch, down, PATCH, PATCH, across, depth),
        lambda n, t, i, j, u, c: input_sum(j, [vertical(n, t, i, u * TILE + k, c) for k in range(PATCH)]),
        name="patches",
    )
    ci = te.reduce_axis((0, depth), "ci")
    products = te.compute(
        (batch, down, PATCH, PATCH, across, outputs),
        lambda n, t, i, j, u, o: te.sum(patches(n, t, i, j, u, ci) * weight(i, j, ci, o), axis=ci),
        name="products",
        attrs={"family": WINOGRAD_FAMILY},
    )
    partial = te.compute(
        (batch, down, PATCH, TILE, across, outputs),
        lambda n, t, i, q, u, o: output_sum(q, [products(n, t, i, k, u, o) for k in range(PATCH)]),
        name="partial",
    )

    def element(n: Index, h: Index, w: Index, o: Index) -> Expression:
        terms = [partial(n, h // TILE, k, w % TILE, w // TILE, o) for k in range(PATCH)]
        return output_sum(h % TILE, terms)

    return te.compute((batch, rows, columns, outputs), element, name="result")


def input_sum(row: Index, d: Sequence[Expression]) -> Expression:
    """Row `row` of B^T d."""
    even, odd = _scaled(d[2], -4.0) + d[4], _scaled(d[1], -4.0) + d[3]
    outer, inner = d[4] - d[2], d[3] - d[1]
    sums = (
        _scaled(d[0], 4.0) + (_scaled(d[2], -5.0) + d[4]),
        even + odd,
        even - odd,
        _scaled(inner, 2.0) + outer,
        _scaled(inner, -2.0) + outer,
        _scaled(d[1], 4.0) + (_scaled(d[3], -5.0) + d[5]),
    )
    return _choose(row, sums)


def output_sum(row: Index, m: Sequence[Expression]) -> Expression:
    """Row `row` of A^T m."""
    near, far = m[1] + m[2], m[3] + m[4]
    near_difference, far_difference = m[1] - m[2], m[3] - m[4]
    sums = (
        m[0] + near + far,
        _scaled(far_difference, 2.0) + near_difference,
        _scaled(far, 4.0) + near,
        (_scaled(far_difference, 8.0) + near_difference) + m[5],
    )
    return _choose(row, sums)


def _scaled(value: Expression, factor: float) -> Expression:
    return value * like(value, factor)


def _choose(row: Index, values: Sequence[Expression]) -> Expression:
    result = values[-1]
    for position in range(len(values) - 2, -1, -1):
        result = select(row < position + 1, values[position], result)
    return result
