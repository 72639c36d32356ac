"""What integer convolutions share: their windows, and the borders of the image.

Their inner loops know no borders: they read a padded copy. What a padded tap contributes wrongly is put right by a
small table, which also holds the constant part of the result:

    result[n, y, x, o] = table[row_class(y), column_class(x), o] + sum[n, y, x, o]

Outputs whose windows leave the image by the same taps are of one class; away from the borders there is one class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from mattecompress.backends.tvm.compute.convolution import Geometry

Array = np.ndarray[Any, Any]
Expression = Any
MASKED = "masked"


def geometry(kernel: Sequence[int], values: dict[str, Any]) -> Geometry:
    """The window of a convolution with `kernel` and the arguments of its node, by name."""
    stride, padding, dilation = (tuple(values[name]) for name in ("stride", "padding", "dilation"))
    return Geometry(tuple(kernel), stride, padding, dilation)  # type: ignore[arg-type]


def image_size(operand: relax.Expr) -> tuple[int, int]:
    """Rows and columns of an NHWC operand."""
    _, height, width, _ = (int(extent) for extent in operand.ty.shape)
    return height, width


def constant(operand: Any) -> Array:
    """The array behind a constant operand: a Relax constant, a torch tensor or an array."""
    data = operand.value if isinstance(operand, GenericConst) else operand
    return np.asarray(data.numpy() if hasattr(data, "numpy") else data)


@dataclass(frozen=True)
class Outputs:
    """Which outputs a kernel computes.

    shape: of its loops over images, rows and columns.
    place: the output (n, y, x) behind an index of these loops.
    masked: rows from a count on are not computed.
    """

    shape: tuple[int, int, int]
    place: Callable[[Expression, Expression, Expression], tuple[Expression, Expression, Expression]]
    masked: bool = False

    @classmethod
    def all(cls, window: Geometry, size: Sequence[int], batch: int) -> "Outputs":
        """Every output of a window that slides over images of `size` rows and columns."""
        shape = (batch, window.extent(size[0], 0), window.extent(size[1], 1))
        return cls(shape, lambda n, y, x: (n, y, x))

    def attributes(self, tile: Sequence[int]) -> dict[str, Any]:
        """What the block of the results says to the rule that schedules it; `tile` are a `Tile`'s numbers."""
        return {"tile": list(tile), MASKED: int(self.masked)}


def border_classes(window: Geometry, size: int, axis: int) -> tuple[list[int], Array]:
    """First output position of each class along an axis, and which taps lie inside (classes, taps) for it."""
    inside = [
        tuple(
            0 <= window.tap(position, tap, axis) - window.padding[axis] < size
            for tap in range(window.kernel[axis])
        )
        for position in range(window.extent(size, axis))
    ]
    starts = [i for i, flags in enumerate(inside) if i == 0 or flags != inside[i - 1]]
    return starts, np.array([inside[start] for start in starts])


def border_table(window: Geometry, size: Sequence[int], everywhere: Array, outside: Array) -> Array:
    """The table of the module's docstring: int32 (row classes, column classes, O).

    Args:
        window: the sliding window.
        size: rows and columns of the unpadded input.
        everywhere: constant part of every output, (O,).
        outside: what a tap outside the image adds to that, (KH, KW, O).
    """
    rows, columns = (border_classes(window, size[axis], axis)[1] for axis in (0, 1))
    taps_outside = ~(rows[:, None, :, None] & columns[None, :, None, :])
    correction = np.einsum("rckl,klo->rco", taps_outside.astype(np.int64), outside.astype(np.int64))
    table = everywhere + correction
    if (table == table[:1, :1]).all():
        table = table[:1, :1]
    return np.ascontiguousarray(table.astype(np.int32))


def read_table(
    table: te.Tensor, window: Geometry, size: Sequence[int], y: Expression, x: Expression, *o: Expression
) -> Expression:
    """The table's entry for an output, whose channel may have several indices."""
    if int(table.shape[0]) == 1 and int(table.shape[1]) == 1:
        return table(0, 0, *o)
    classes = []
    for axis, position in ((0, y), (1, x)):
        starts, _ = border_classes(window, size[axis], axis)
        passed = [tirx.Cast("int32", position >= start) for start in starts[1:]]
        classes.append(sum(passed[1:], passed[0]) if passed else 0)
    return table(*classes, *o)


def emit_kernel(
    builder: relax.BlockBuilder,
    name: str,
    pattern: int,
    compute: Callable[..., te.Tensor],
    source: relax.Expr,
    *constants: Array,
) -> relax.Var:
    """Call one kernel over `source` and constants."""
    return builder.emit_te(
        compute,
        source,
        *(relax.const(array) for array in constants),
        primfunc_name_hint=name,
        primfunc_attrs={"op_pattern": pattern},
    )


def result_tile(schedule: Any, name: str) -> list[int] | None:
    """The numbers that the block called `name` carries as its tile; None where there is no such block."""
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    found = [block for block in blocks if schedule.get(block).name_hint == name]
    return [int(extent) for extent in schedule.get(found[0]).annotations["tile"]] if found else None
