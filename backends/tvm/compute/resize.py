"""Bilinear resizing over NHWC. Where a pixel reads is tabulated when compiling, by `mattecompress.ops.resize`."""

from tvm import te, tirx

from mattecompress.backends.tvm.compute.mathematics import product
from mattecompress.backends.tvm.compute.operands import Expression, Index

KEPT, ROW, FRAME_ROW = "kept", "row", "frame row"
"""Attribute of a block that is not to be inlined, and its values: it is computed a row at a time, since its values
are read twice; a frame row is read by the outputs of the frame, plane by plane."""


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
    batch, height, width, channels = (int(size) for size in x.shape)
    rows, columns = int(row_places.shape[1]), int(column_places.shape[1])

    def within(place: Expression, size: int) -> Expression:
        return tirx.max(tirx.min(place, size - 1), 0)

    def blend_rows(n: Index, i: Index, j: Index, c: Index) -> Expression:
        low, high = (within(row_places(k, i), height) for k in (0, 1))
        return product(row_weights(0, i), x(n, low, j, c)) + row_weights(1, i) * x(n, high, j, c)

    def blend_columns(n: Index, i: Index, j: Index, c: Index) -> Expression:
        low, high = (within(column_places(k, j), width) for k in (0, 1))
        return product(column_weights(0, j), row(n, i, low, c)) + column_weights(1, j) * row(n, i, high, c)

    row = blend_rows
    if columns >= width:
        row = te.compute((batch, rows, width, channels), blend_rows, name="blended_row", attrs={KEPT: ROW})
    attributes = {KEPT: FRAME_ROW} if keep else {}
    return te.compute((batch, rows, columns, channels), blend_columns, name="resize", attrs=attributes)
