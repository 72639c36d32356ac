"""One node of the program while it is turned into ONNX: its arguments by name, as numbers or as values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.backends.onnx.graph import ElementType, RefusalError, Writer, element_type
from mattecompress.facts import Facts
from mattecompress.program import fetch_tensor


class Call:
    """A node, its arguments (`call["stride"]`, defaults filled in) and the writer that its ONNX form goes to."""

    def __init__(self, node: fx.Node, writer: Writer) -> None:
        self.node = node
        self.writer = writer
        self.arguments = _bind(node)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the node's own value."""
        dtype = self.facts(self.node).dtype
        assert dtype is not None
        return dtype

    @property
    def module(self) -> nn.Module:
        """The module that the node calls."""
        return self._root.get_submodule(str(self.node.target))

    @property
    def _root(self) -> nn.Module:
        root = self.node.graph.owning_module
        assert root is not None
        return root

    def facts(self, argument: str | fx.Node) -> Facts:
        """Facts of a node, or of the node that is the argument of that name."""
        node = self[argument] if isinstance(argument, str) else argument
        facts = node.meta["facts"]
        assert isinstance(facts, Facts)
        return facts

    def rank(self, argument: str | fx.Node) -> int:
        """Number of axes of an argument."""
        return len(self.facts(argument).shape)

    def sizes(self, argument: str | fx.Node, why: str) -> tuple[int, ...]:
        """The shape of an argument as integers.

        Raises:
            RefusalError: a size is symbolic; `why` says what needs it.
        """
        shape = self.facts(argument).shape
        if any(isinstance(size, str) for size in shape):
            raise RefusalError(f"{why} needs a fixed resolution: run set-resolution first")
        return tuple(int(size) for size in shape)

    def axis(self, argument: str | fx.Node, name: str = "dim") -> int:
        """The axis in `name`, counted from 0."""
        return int(self[name]) % max(self.rank(argument), 1)

    def constant(self, name: str) -> Tensor:
        """The tensor of an argument that is one of the program's constants.

        Raises:
            RefusalError: the argument is computed.
        """
        node = self[name]
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise RefusalError(f"{name} is computed; only a constant can be exported")
        return fetch_tensor(self._root, str(node.target))

    def number(self, name: str) -> float:
        """An argument that must be a plain number."""
        value = self[name]
        if isinstance(value, fx.Node):
            raise RefusalError(f"{name} is computed; only a number can be exported")
        return value  # type: ignore[no-any-return]

    def value(self, name: str, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of an argument, cast to `dtype` if given; a number becomes a scalar of `dtype`."""
        return self.operand(self[name], dtype)

    def operand(self, argument: Any, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of a node or a number, as `value` gives it for a named argument."""
        if isinstance(argument, fx.Node):
            value = self.writer.values[argument]
            return value if dtype is None else self.cast(value, self.facts(argument).dtype, dtype)
        assert dtype is not None, "a number needs a dtype"
        return self.writer.numbers(argument, dtype)

    def optional(self, name: str) -> str:
        """The ONNX value of an argument, or ONNX's empty name for None."""
        return "" if self[name] is None else self.value(name)

    def emit(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write one standard operation; returns its value."""
        return self.writer.emit(self.node.name, kind, inputs, **attributes)

    def emit_last(self, kind: str, results: int, *inputs: str, **attributes: Any) -> str:
        """Write one standard operation that has several results; returns the last."""
        return self.writer.emit(self.node.name, kind, inputs, unread=results - 1, **attributes)

    def emit_function(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write a call of one of the local functions `matte::`; returns its value."""
        return self.writer.emit(self.node.name, kind, inputs, domain="matte", **attributes)

    def cast(self, value: str, old: torch.dtype | None, new: torch.dtype) -> str:
        """`value` in element type `new`."""
        if element_type(old) == element_type(new):
            return value
        return self.emit("Cast", value, to=ElementType(element_type(new)))

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.writer.numbers(values, torch.int64)

    def size_vector(self, values: Sequence[Any]) -> str:
        """An int64 vector of sizes, each a number or an integer node."""
        if not any(isinstance(value, fx.Node) for value in values):
            return self.integers(*values)
        parts = [self.operand(v) if isinstance(v, fx.Node) else self.integers(v) for v in values]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)

    def like(self, name: str, value: Tensor) -> str:
        """A constant tensor that belongs to this node."""
        return self.writer.tensor(f"{self.node.name}.{name}", value)


def _bind(node: fx.Node) -> dict[str, Any]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)}
    schema = node.target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    bound |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return bound | dict(node.kwargs)
