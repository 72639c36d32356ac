"""What a converter of one ATen operation sees and returns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax, te

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.operands import (
    INJECTIVE,
    LOGICAL_ORDER,
    STORAGE_ORDER,
    View,
    compose,
    emit,
    in_memory,
    in_order,
    stored,
)
from mattecompress.backends.tvm.importer.builder import Builder
from mattecompress.program import Program

IMAGE_RANK = 4
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int64: "int64",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class Conversion:
    """The value of a node.

    name: of its kernel, when it gets one.
    pattern: how the kernel may be fused with its neighbours.
    done: the value is in memory already, or a view of what is.
    as_is: a value of rank 4 is in the order of its axes, as tokens are, and not in that of images, NHWC.
    """

    view: View
    name: str
    pattern: int
    done: bool = False
    as_is: bool = False


@dataclass
class Scope:
    """The function under construction: the program, the builder, and the values of the nodes so far.

    planar: the inputs of rank 4 as views of the caller's NCHW tensors.
    tokens: values of rank 4 in the order of their axes; `kept` names those that are held so.
    in_frame: whether the node at hand belongs to the frame, the last pass over whole images.
    """

    program: Program
    builder: Builder
    values: dict[fx.Node, View] = field(default_factory=dict)
    planar: dict[fx.Node, View] = field(default_factory=dict)
    tokens: dict[fx.Node, View] = field(default_factory=dict)
    kept: set[fx.Node] = field(default_factory=set)
    in_frame: bool = False

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The logical shape of a node."""
        return self.program.facts(node).sizes

    def dtype(self, node: fx.Node) -> str:
        """The element type of a node, such as `float32`."""
        return DTYPE_NAMES[self.program.facts(node).dtype]  # type: ignore[index]

    def view(self, node: fx.Node, rank: int | None = None) -> View:
        """The value of an activation, or of a constant in storage order with ones before its shape up to `rank`."""
        if node.op == "get_attr":
            return self.constant(stored(self.program.tensor(node), rank))
        if self.in_frame and node in self.planar:
            return self.planar[node]
        if node not in self.values and node in self.tokens:
            self.values[node] = reordered(self.tokens[node], STORAGE_ORDER, self.shape(node))
        if node not in self.values:
            self.values[node] = in_memory(self.emit_for(node, "to_nhwc", self.planar[node]))
        return self.values[node]

    def as_is(self, node: fx.Node, rank: int | None = None) -> View:
        """The value of an activation, or of a constant as of `view`, in the order of its axes."""
        if node.op == "get_attr":
            return self.constant(in_order(self.program.tensor(node), rank))
        if len(self.shape(node)) != IMAGE_RANK:
            return self.view(node)
        if node not in self.tokens:
            view, shape = self.view(node), self.shape(node)
            self.tokens[node] = reordered(view, LOGICAL_ORDER, [shape[axis] for axis in STORAGE_ORDER])
        return self.tokens[node]

    def are_tokens(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether there are activations of rank 4 among nodes, and all of them are held in the order of their axes."""
        images = [node for node in nodes if node.op != "get_attr" and len(self.shape(node)) == IMAGE_RANK]
        return bool(images) and self.kept.issuperset(images)

    def keep(self, node: fx.Node, view: View, as_is: bool) -> None:
        """Hold the value of a node."""
        if as_is and len(self.shape(node)) == IMAGE_RANK:
            self.tokens[node] = view
            self.kept.add(node)
        else:
            self.values[node] = view

    def memory(self, node: fx.Node) -> View:
        """An activation or a constant in memory in the order of its axes; computes it there if it was a view."""
        view = self.as_is(node)
        if not view.is_stored:
            view = in_memory(self.emit_for(node, "lay_out", view))
            self.keep(node, view, as_is=True)
        return view

    def sample(self, node: fx.Node) -> View:
        """The value of an activation for a reader that takes few of its elements: an input as the caller gave it."""
        return self.planar[node] if node in self.planar else self.view(node)

    def variable(self, node: fx.Node) -> relax.Var:
        """An activation in memory; computes it there if it was a view."""
        view = self.view(node)
        if not view.is_stored:
            view = self.values[node] = in_memory(self.emit_for(node, "gather", view))
        return view.sources[0]

    def emit_for(self, node: fx.Node, name: str, view: View) -> relax.Var:
        """Compute a view of a node's value into memory, whatever node is being converted."""
        with self.builder.computing(node):
            return emit(self.builder, name, INJECTIVE, view)

    def tensor(self, node: object) -> torch.Tensor | None:
        """The tensor behind a constant node; None for None.

        Raises:
            TypeError: the node computes.
        """
        if node is None:
            return None
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise TypeError(f"{node} is not a constant")
        return self.program.tensor(node)

    def constant(self, array: np.ndarray[Any, Any]) -> View:
        """A constant in memory."""
        return in_memory(relax.const(array))


def refuse_computed(program: Program, node: fx.Node) -> str | None:
    """Why a layer has no kernel: its weight or bias is computed, by other than a module, which is refused itself."""
    given = arguments_of(node)
    operands = [(name, given[name]) for name in ("weight", "bias") if given.get(name) is not None]
    computed = [name for name, operand in operands if operand.op not in ("get_attr", "call_module")]
    return f"its {computed[0]} is computed: no kernel" if computed else None


def refuse_other_ranks(program: Program, node: fx.Node) -> str | None:
    """Why an operation on images has no kernel: it reads what is none."""
    rank = len(program.facts(node.args[0]).shape)  # type: ignore[arg-type]
    return None if rank == IMAGE_RANK else f"no kernel for images of {rank} dimensions: give it (N,C,H,W)"


def reordered(view: View, axes: Sequence[int], shape: Sequence[int]) -> View:
    """The view of shape `shape` with its axes in another order."""
    places = [list(axes).index(axis) for axis in range(len(axes))]

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(
            [shape[axis] for axis in axes],
            lambda *index: x(*(index[place] for place in places)),
            name="order",
        )

    return compose(compute, [view])
