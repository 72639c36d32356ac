"""Values on their way into a kernel: how they are stored, and what is computed only where it is read.

A tensor of rank 4 is stored as NHWC, whatever its logical NCHW shape; every other rank is stored as it is. A
`View` has not been computed: whoever reads it computes it in its own loops. Slices, joins, resizes and products
that only feed a convolution stay views, so they never go through memory on their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tvm import relax, te, tirx

Index = Any
Expression = Any
Array = np.ndarray[Any, Any]

STORAGE_ORDER = (0, 2, 3, 1)
LOGICAL_ORDER = (0, 3, 1, 2)

ELEMENTWISE, BROADCAST, INJECTIVE, CONVOLUTION, OPAQUE = 0, 1, 2, 4, 8


@dataclass(frozen=True, eq=False)
class View:
    """A tensor in storage order: one in memory, or one computed from other views by whoever reads it.

    sources: the tensors in memory that it is computed from.
    """

    sources: tuple[relax.Expr, ...]
    compute: Callable[..., te.Tensor] | None = None
    operands: tuple["View", ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether the view is a tensor in memory as it is."""
        return self.compute is None

    def tensor(self, memory: dict[relax.Expr, te.Tensor], made: dict["View", te.Tensor]) -> te.Tensor:
        """The tensor expression over the tensors `memory`; every view is `made` once in a kernel."""
        if self.compute is None:
            return memory[self.sources[0]]
        if self not in made:
            made[self] = self.compute(*(operand.tensor(memory, made) for operand in self.operands))
        return made[self]


def in_memory(source: relax.Expr) -> View:
    """The view of a tensor that is in memory."""
    return View((source,))


def compose(compute: Callable[..., te.Tensor], operands: Sequence[View]) -> View:
    """The view of a tensor computed from other views."""
    return View(_sources(operands), compute, tuple(operands))


def emit(builder: relax.BlockBuilder, name: str, pattern: int, *views: View) -> relax.Var:
    """Compute views into memory by one kernel; a tuple if there are several.

    pattern: how `FuseOps` may join the kernel with its neighbours.
    """
    sources = _sources(views)

    def build(*tensors: te.Tensor) -> Any:
        memory, made = dict(zip(sources, tensors, strict=True)), dict[View, te.Tensor]()
        results = [view.tensor(memory, made) for view in views]
        return results[0] if len(results) == 1 else results

    return builder.emit_te(build, *sources, primfunc_name_hint=name, primfunc_attrs={"op_pattern": pattern})


def _sources(views: Sequence[View]) -> tuple[relax.Expr, ...]:
    return tuple(dict.fromkeys(source for view in views for source in view.sources))


def storage_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The stored shape of a tensor of logical shape `shape`."""
    return tuple(shape[axis] for axis in STORAGE_ORDER) if len(shape) == 4 else tuple(shape)


def logical_index(index: Sequence[Index]) -> tuple[Index, ...]:
    """A stored index in logical order."""
    return tuple(index[axis] for axis in LOGICAL_ORDER) if len(index) == 4 else tuple(index)


def read(tensor: te.Tensor, index: Sequence[Index]) -> Expression:
    """The element of a stored tensor at a logical index of a shape that the tensor broadcasts to."""
    shape = logical_index(tensor.shape)
    aligned = index[len(index) - len(shape) :]
    clipped = tuple(0 if int(size) == 1 else i for size, i in zip(shape, aligned, strict=True))
    return tensor(*(clipped[axis] for axis in STORAGE_ORDER) if len(shape) == 4 else clipped)


def read_as_is(tensor: te.Tensor, index: Sequence[Index]) -> Expression:
    """The element of a tensor in the order of its axes, at an index of a shape that it broadcasts to."""
    aligned = index[len(index) - len(tensor.shape) :]
    return tensor(*(0 if int(size) == 1 else i for size, i in zip(tensor.shape, aligned, strict=True)))


def in_order(tensor: torch.Tensor, rank: int | None = None) -> Array:
    """A constant in the order of its axes, with ones before its shape up to `rank`."""
    tensor = tensor.detach().cpu()
    if rank is not None:
        tensor = tensor.reshape((1,) * (rank - tensor.ndim) + tuple(tensor.shape))
    return np.ascontiguousarray(tensor.numpy())


def stored(tensor: torch.Tensor, rank: int | None = None) -> Array:
    """A logical constant in storage order, with ones before its shape up to `rank`."""
    array = in_order(tensor, rank)
    return np.ascontiguousarray(array.transpose(STORAGE_ORDER)) if array.ndim == 4 else array


def elementwise(
    name: str,
    shape: Sequence[int],
    function: Callable[..., Expression],
    *tensors: te.Tensor,
    as_is: bool = False,
) -> te.Tensor:
    """`function` of one element of each tensor, broadcast to the logical `shape`.

    as_is: tensors of rank 4, and the result, are in the order of their axes.
    """
    if as_is:
        return te.compute(
            shape, lambda *index: function(*(read_as_is(tensor, index) for tensor in tensors)), name=name
        )
    return te.compute(
        storage_shape(shape),
        lambda *index: function(*(read(tensor, logical_index(index)) for tensor in tensors)),
        name=name,
    )


def select(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    """`then` where the condition holds, else `otherwise`; the branch not taken is not evaluated."""
    return tirx.if_then_else(condition, then, otherwise)
