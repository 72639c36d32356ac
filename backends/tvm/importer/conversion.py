"""What a converter of one ATen operation sees and returns."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from mattecompress.backends.tvm.compute.operands import INJECTIVE, View, emit, in_memory, stored
from mattecompress.program import Program

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
    """

    view: View
    name: str
    pattern: int
    done: bool = False


@dataclass
class Scope:
    """The function under construction: the program, the builder, and the values of the nodes so far.

    planar: the inputs of rank 4 as views of the caller's NCHW tensors.
    in_frame: whether the node at hand belongs to the frame, the last pass over whole images.
    """

    program: Program
    builder: relax.BlockBuilder
    values: dict[fx.Node, View] = field(default_factory=dict)
    planar: dict[fx.Node, View] = field(default_factory=dict)
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
        if node not in self.values:
            self.values[node] = in_memory(emit(self.builder, "to_nhwc", INJECTIVE, self.planar[node]))
        return self.values[node]

    def sample(self, node: fx.Node) -> View:
        """The value of an activation for a reader that takes few of its elements: an input as the caller gave it."""
        return self.planar[node] if node in self.planar else self.view(node)

    def variable(self, node: fx.Node) -> relax.Var:
        """An activation in memory; computes it there if it was a view."""
        view = self.view(node)
        if not view.is_stored:
            view = self.values[node] = in_memory(emit(self.builder, "gather", INJECTIVE, view))
        return view.sources[0]

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
