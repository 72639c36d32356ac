"""Matrix products as tensor expressions.

y[..., i, j] = sum over k of x[..., i, k] * w[..., k, j], in that order, each step a fused multiply-add.
"""

from tvm import te

from mattecompress.backends.tvm.compute.operands import Expression, Index

LINEAR_FAMILY = "linear"
PRODUCT_FAMILY = "product"


def linear(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """x (..., I) and a constant weight (1,1,I,O) to (..., O)."""
    k = te.reduce_axis((0, int(x.shape[-1])), "k")

    def element(*index: Index) -> Expression:
        return te.sum(x(*index[:-1], k) * weight(0, 0, k, index[-1]), axis=[k])

    shape = (*x.shape[:-1], weight.shape[3])
    return te.compute(shape, element, name="linear", attrs={"family": LINEAR_FAMILY})


def product(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """x (..., I, K) and weight (..., K, J) to (..., I, J)."""
    k = te.reduce_axis((0, int(x.shape[-1])), "k")

    def element(*index: Index) -> Expression:
        *batch, i, j = index
        return te.sum(x(*batch, i, k) * weight(*batch, k, j), axis=[k])

    shape = (*x.shape[:-1], weight.shape[-1])
    return te.compute(shape, element, name="product", attrs={"family": PRODUCT_FAMILY})
