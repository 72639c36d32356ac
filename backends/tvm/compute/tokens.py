"""Routed tokens as tensor expressions: which are the surest, where they lie, and their rows in and out.

A token's rank is the number of those before it, surer or as sure and first; the token of rank k is at places[k]. Both
are counted for all tokens at once, without sorting:

    rank[i]   = sum over j of [m[j] > m[i] or (m[j] = m[i] and j < i)]
    places[k] = sum over i of (i + 1) [rank[i] = k and m[i] > 0]  -  1
    slots[i]  = sum over k of (k + 1) [places[k] = i]  -  1
"""

from tvm import te, tirx

from mattecompress.backends.tvm.compute.mathematics import constant
from mattecompress.backends.tvm.compute.operands import Expression, Index, select
from mattecompress.backends.tvm.compute.pooling import POOLING_FAMILY


def ranks_of(margin: te.Tensor) -> te.Tensor:
    """margin (N,L) to int32 (N,1,1,L)."""
    batch, length = (int(size) for size in margin.shape)
    j = te.reduce_axis((0, length), "j")

    def element(n: Index, _a: Index, _b: Index, i: Index) -> Expression:
        ours, theirs = margin(n, i), margin(n, j)
        before = tirx.any(theirs > ours, tirx.all(theirs >= ours, j < i))
        return te.sum(before.astype("int32"), axis=[j])

    return te.compute((batch, 1, 1, length), element, name="ranks", attrs={"family": POOLING_FAMILY})


def places_of(margin: te.Tensor, ranks: te.Tensor, limit: int) -> te.Tensor:
    """margin (N,L) and its ranks to int32 (N,1,1,limit)."""
    batch, length = (int(size) for size in margin.shape)
    i = te.reduce_axis((0, length), "i")

    def element(n: Index, _a: Index, _b: Index, k: Index) -> Expression:
        here = tirx.all(ranks(n, 0, 0, i) == k, margin(n, i) > constant(0.0))
        return te.sum(tirx.Select(here, i + 1, 0), axis=[i])

    return _less_one(te.compute((batch, 1, 1, limit), element, name="sum", attrs={"family": POOLING_FAMILY}))


def slots_of(places: te.Tensor, length: int) -> te.Tensor:
    """places (N,K) to int32 (N,1,1,length), -1 where no place is."""
    batch, room = (int(size) for size in places.shape)
    k = te.reduce_axis((0, room), "k")

    def element(n: Index, _a: Index, _b: Index, i: Index) -> Expression:
        return te.sum(tirx.Select(places(n, k) == i, k + 1, 0), axis=[k])

    return _less_one(te.compute((batch, 1, 1, length), element, name="sum", attrs={"family": POOLING_FAMILY}))


def _less_one(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *index: x(*index) - 1, name="less_one")


def gathered(x: te.Tensor, places: te.Tensor) -> te.Tensor:
    """The rows of x (N,L,C) at places (N,K), zeros where there is none."""

    def element(n: Index, k: Index, c: Index) -> Expression:
        return select(places(n, k) >= 0, x(n, places(n, k), c), constant(0.0, x.dtype))

    return te.compute((*places.shape, x.shape[2]), element, name="gathered")


def scattered(rows: te.Tensor, slots: te.Tensor, base: te.Tensor) -> te.Tensor:
    """base (N,L,C) with rows (N,K,C) where slots (N,1,1,L) name one."""

    def element(n: Index, i: Index, c: Index) -> Expression:
        return select(slots(n, 0, 0, i) >= 0, rows(n, slots(n, 0, 0, i), c), base(n, i, c))

    return te.compute(base.shape, element, name="scattered")
