"""The ONNX graph while it is being written: plain records, so that a trial needs neither onnx nor weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress.facts import DTYPE_NAMES

ELEMENT_TYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.float16: "FLOAT16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int16: "INT16",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}
"""Names of ONNX element types."""

END = 2**63 - 1
"""The end of any axis, as `aten.slice` and ONNX's `Slice` both spell it."""


class RefusalError(Exception):
    """A node has no exact ONNX form; the message is the reason. `Onnx.supports` answers with it."""


@dataclass
class Operation:
    """One ONNX node: operator, names of its values, attributes, and the program's facts about it.

    unread: results that stand before `output` and that nobody reads.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    domain: str = ""
    unread: int = 0
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Initializer:
    """A constant tensor and the ONNX element type to store it in."""

    value: Tensor
    element: str


@dataclass(frozen=True)
class ElementType:
    """An ONNX element type as an attribute value (`Cast`'s `to`)."""

    name: str


def element_type(dtype: torch.dtype | None) -> str:
    """The ONNX element type of a dtype; None, an integer node, is INT64.

    Raises:
        RefusalError: ONNX Runtime's CPU kernels lack the type.
    """
    if dtype is None:
        return "INT64"
    if dtype not in ELEMENT_TYPES:
        raise RefusalError(f"element type {DTYPE_NAMES.get(dtype, dtype)} is not exported")
    return ELEMENT_TYPES[dtype]


class Writer:
    """Collects operations and initializers; every value has one name, kept unique.

    spell_out: write functions operation by operation as torch computes them, where runtimes have coarser ones.
    """

    def __init__(self, reserved: Sequence[str] = (), spell_out: bool = False) -> None:
        self.spell_out = spell_out
        self.operations: list[Operation] = []
        self.initializers: dict[str, Initializer] = {}
        self.values: dict[fx.Node, str] = {}
        self.functions: dict[str, None] = {}
        self._taken = set(reserved)
        self._scalars: dict[tuple[Any, ...], str] = {}

    def name(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2` ... when it is taken."""
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name

    def emit(
        self,
        prefix: str,
        kind: str,
        inputs: Sequence[str],
        domain: str = "",
        unread: int = 0,
        **attributes: Any,
    ) -> str:
        """Append an operation and return the name of its value, the one behind those that are not read."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        output = self.name(f"{prefix}.{kind}")
        self.operations.append(Operation(kind, tuple(inputs), output, attributes, domain, unread))
        if domain:
            self.functions[kind] = None
        return output

    def tensor(self, wish: str, value: Tensor, element: str | None = None) -> str:
        """Add an initializer named after `wish`."""
        name = self.name(wish)
        self.initializers[name] = Initializer(value.detach(), element or element_type(value.dtype))
        return name

    def numbers(self, values: Sequence[float] | float, dtype: torch.dtype) -> str:
        """A constant scalar (for a number) or vector (for a sequence), written once however often it is used."""
        key = (dtype, isinstance(values, Sequence), str(values))
        if key not in self._scalars:
            self._scalars[key] = self.tensor(f"const_{len(self._scalars)}", torch.tensor(values, dtype=dtype))
        return self._scalars[key]

    def rename(self, old: str, new: str, since: int) -> None:
        """Give the value `old`, written by an operation no earlier than index `since`, the name `new`."""
        for operation in self.operations[since:]:
            operation.inputs = tuple(new if name == old else name for name in operation.inputs)
            if operation.output == old:
                operation.output = new
