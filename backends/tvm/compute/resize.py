"""Bilinear resizing over NHWC. Where a pixel reads is tabulated when compiling, by `mattecompress.ops.resize`."""

from tvm import te, tirx

from mattecompress.backends.tvm.compute.mathematics import product
from mattecompress.backends.tvm.compute.operands import Expression, Index

KEPT, ROW, FRAME_ROW = "kept", "row", "frame row"
"""Attribute of a block that is not to be inlined, and its values: it is computed a row at a time, since its values
are read twice; a frame row is read by the outputs of the frame, plane by plane."""
PHASES = "phases"
"""Attribute of a frame row: as many pixels in sequence blend the same two."""


def resize_bilinear(
    x: te.Tensor,
    row_places: te.Tensor,
    row_weights: te.Tensor,
    column_places: te.Tensor,
    column_weights: te.Tensor,
    keep: bool = False,
) -> te.Tensor:
    """x (N,H,W,C) to (N,OH,OW,C).

    row_places int32 (2,OH) and row_weights float32 (2,OH): low and high, near and far; columns likewise (2,OW).
    keep: the result is read plane by plane, and so is computed a row at a time before.
    """
    width, columns = int(x.shape[2]), int(column_places.shape[1])
    row = _blended_rows(x, row_places, row_weights, keep=columns >= width)

    def blend_columns(n: Index, i: Index, j: Index, c: Index) -> Expression:
        low, high = (_within(column_places(k, j), width) for k in (0, 1))
        return product(column_weights(0, j), row(n, i, low, c)) + column_weights(1, j) * row(n, i, high, c)

    shape = (*row.shape[:2], columns, row.shape[3])
    return te.compute(shape, blend_columns, name="resize", attrs={KEPT: FRAME_ROW} if keep else {})


def resize_in_phases(
    x: te.Tensor,
    row_places: te.Tensor,
    row_weights: te.Tensor,
    phase_weights: te.Tensor,
    factor: int,
    shift: int,
) -> te.Tensor:
    """x (N,H,W,C) to (N,OH,factor*W,C), where pixel j blends those at (j + shift) // factor, less one, and there.

    What is computed a row at a time holds each channel's pixels side by side. Those of a row whose place is the same
    blend the same two: a vector of them reads two scalars.

    phase_weights: float32 (2, factor*(W+1)), near and far of each pixel, from pixel -shift on.
    """
    width, columns = int(x.shape[2]), int(phase_weights.shape[1])
    row = _blended_rows(x, row_places, row_weights, keep=True)

    def blend_columns(n: Index, i: Index, c: Index, j: Index) -> Expression:
        near, far = (row(n, i, _within(j // factor - k, width), c) for k in (1, 0))
        return product(phase_weights(0, j), near) + phase_weights(1, j) * far

    batch, rows, _, channels = row.shape
    attributes = {KEPT: FRAME_ROW, PHASES: factor}
    planes = te.compute((batch, rows, channels, columns), blend_columns, name="planes", attrs=attributes)
    return te.compute(
        (batch, rows, columns - factor, channels),
        lambda n, i, j, c: planes(n, i, c, j + shift),
        name="resize",
    )


def _blended_rows(x: te.Tensor, places: te.Tensor, weights: te.Tensor, keep: bool) -> te.Tensor:
    """x (N,H,W,C) to (N,OH,W,C)."""
    batch, height, width, channels = (int(size) for size in x.shape)

    def blend(n: Index, i: Index, j: Index, c: Index) -> Expression:
        low, high = (_within(places(k, i), height) for k in (0, 1))
        return product(weights(0, i), x(n, low, j, c)) + weights(1, i) * x(n, high, j, c)

    attributes = {KEPT: ROW} if keep else {}
    return te.compute(
        (batch, int(places.shape[1]), width, channels), blend, name="blended_row", attrs=attributes
    )


def _within(place: Expression, size: int) -> Expression:
    return tirx.max(tirx.min(place, size - 1), 0)
