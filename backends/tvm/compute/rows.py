"""Functions of rows, the last axis of a tensor, as tensor expressions: softmax and layer norm.

A row is summed in as many interleaved parts as vectors want and its length allows, then these one after the other.
"""

from collections.abc import Callable

from tvm import te, tirx

from mattecompress.backends.tvm.compute.mathematics import constant, exp, log, product, quotient
from mattecompress.backends.tvm.compute.operands import Expression, Index

ROW_FAMILY = "row"
PARTS = (16, 8, 4, 2, 1)

Element = Callable[..., Expression]
"""From the index of an element to its value."""


def softmax(x: te.Tensor) -> te.Tensor:
    """x (..., L) to exp(x - max x) / sum of the same."""
    shares = _shares(x, _peak(x))
    total = _sum(x, shares)
    return _each(x, "softmax", lambda *index: quotient(shares(*index), total(*index[:-1])))


def log_softmax(x: te.Tensor) -> te.Tensor:
    """x (..., L) to the logarithm of its softmax."""
    peak = _peak(x)
    logarithm = _finished(_sum(x, _shares(x, peak)), "logarithm", log)
    return _each(x, "log_softmax", lambda *index: x(*index) - peak(*index[:-1]) - logarithm(*index[:-1]))


def layer_norm(
    x: te.Tensor, epsilon: float, weight: te.Tensor | None = None, bias: te.Tensor | None = None
) -> te.Tensor:
    """x (..., C), less its mean, over its deviation, times weight (C,) and plus bias (C,) where these are given."""
    count = constant(float(int(x.shape[-1])))
    mean = _finished(_sum(x, x), "mean", lambda total: quotient(total, count))

    def square(*index: Index) -> Expression:
        difference = x(*index) - mean(*index[:-1])
        return product(difference, difference)

    variance = _sum(x, square)
    deviation = _finished(
        variance, "deviation", lambda total: tirx.sqrt(quotient(total, count) + constant(epsilon))
    )

    def element(*index: Index) -> Expression:
        value = quotient(x(*index) - mean(*index[:-1]), deviation(*index[:-1]))
        if weight is not None:
            value = product(value, weight(index[-1]))
        return value if bias is None else value + bias(index[-1])

    return _each(x, "layer_norm", element)


def _shares(x: te.Tensor, peak: te.Tensor) -> te.Tensor:
    return _each(x, "shares", lambda *index: exp(x(*index) - peak(*index[:-1])), ROW_FAMILY)


def _peak(x: te.Tensor) -> te.Tensor:
    return _reduced(x, x, te.max, "peak")


def _sum(x: te.Tensor, values: Element) -> te.Tensor:
    return _reduced(x, values, te.sum, "total")


def _reduced(x: te.Tensor, values: Element, reduce: Expression, name: str) -> te.Tensor:
    """`reduce` of the values of each row of a tensor of x's shape, (...)."""
    *rows, length = (int(size) for size in x.shape)
    parts = next(count for count in PARTS if length % count == 0)
    k, lane = te.reduce_axis((0, length // parts), "k"), te.reduce_axis((0, parts), "lane")
    partial = te.compute(
        (*rows, parts),
        lambda *index: reduce(values(*index[:-1], k * parts + index[-1]), axis=[k]),
        name=f"{name}_parts",
        attrs={"family": ROW_FAMILY},
    )
    return te.compute(
        tuple(rows),
        lambda *row: reduce(partial(*row, lane), axis=[lane]),
        name=name,
        attrs={"family": ROW_FAMILY},
    )


def _finished(total: te.Tensor, name: str, function: Callable[[Expression], Expression]) -> te.Tensor:
    return te.compute(
        total.shape, lambda *row: function(total(*row)), name=name, attrs={"family": ROW_FAMILY}
    )


def _each(x: te.Tensor, name: str, element: Element, family: str = "") -> te.Tensor:
    return te.compute(x.shape, element, name=name, attrs={"family": family} if family else {})
