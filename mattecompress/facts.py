"""What is known of one node of a program: its only metadata."""

import ast
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Precision:
    """Bits of a layer's weights and of the activations it reads; the single source for every consumer."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """From `w4a8`."""
        weight, activation = text.removeprefix("w").split("a")
        return cls(int(weight), int(activation))


FLOAT = Precision(32, 32)


@dataclass(frozen=True)
class Provenance:
    """The pass that made a node, and what it was made from.

    origins: names of nodes that no pass made from another: captured ones, or such as a pass added. Empty where the
        node was added without taking the place of any.
    """

    maker: str
    origins: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.maker}({','.join(self.origins)})"

    @classmethod
    def parse(cls, text: str) -> "Provenance":
        """From `fold-batch-norm(conv2d,batch_norm)`.

        Raises:
            ValueError: it is not of that form.
        """
        maker, opened, origins = text.partition("(")
        if not (maker and opened and origins.endswith(")")):
            raise ValueError(f"'{text}' is no provenance")
        return cls(maker, tuple(name for name in origins[:-1].split(",") if name))


@dataclass(frozen=True)
class Facts:
    """Facts of one node.

    shape: sizes, each an int or an expression over the program's symbols such as `16*h`.
    dtype: the tensor's element type; None for a node that yields a plain integer (a size).
    scope: path of the source module that the node came from; empty at the top.
    precision: None means floating point of the type `dtype`.
    region: the block that `partition-blocks` put the node in.
    mask: name of the node whose value masks this one.
    made: the pass that made the node, and from which; None for a captured one.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype | None
    scope: str = ""
    precision: Precision | None = None
    region: str | None = None
    mask: str | None = None
    made: Provenance | None = None

    def but(self, **changes: Any) -> "Facts":
        """A copy with some facts changed."""
        return replace(self, **changes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a program of fixed resolution.

        Raises:
            ValueError: a size is still symbolic.
        """
        return tuple(int(size) for size in self.shape)

    @property
    def type_text(self) -> str:
        """`f32[1,3,288,512]`, or `int[16*h]` for a node that yields that size."""
        kind = "int" if self.dtype is None else DTYPE_NAMES[self.dtype]
        return f"{kind}[{','.join(str(size).replace(' ', '') for size in self.shape)}]"


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def evaluate_size(size: int | str, symbols: Mapping[str, Any]) -> Any:
    """The value of a size expression (`+ - * // %`, integers and symbols only; nothing is executed).

    Raises:
        ValueError: anything else stands in the expression.
    """
    if isinstance(size, int):
        return size
    return _evaluate(ast.parse(size, mode="eval").body, symbols, size)


def parse_size(text: str) -> int | str:
    """A size from its text: a number where no symbol stands in it, else the expression.

    Raises:
        ValueError: it is neither.
    """
    try:
        return text if size_symbols(text) else int(evaluate_size(text, {}))
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise ValueError(f"'{text[:40]}' is no size expression") from error


def size_symbols(size: int | str) -> list[str]:
    """The symbols in a size expression, in order of appearance."""
    if isinstance(size, int):
        return []
    return [node.id for node in ast.walk(ast.parse(size, mode="eval")) if isinstance(node, ast.Name)]


def size_step(size: int | str) -> int:
    """k of an open size `k*symbol`."""
    return int(evaluate_size(size, dict.fromkeys(size_symbols(size), 1)))


def solve_symbols(shape: Iterable[int | str], actual: Iterable[int]) -> dict[str, int]:
    """The symbols of a shape whose open sizes are `k*symbol`, from actual sizes; parts of a step are dropped."""
    return {
        symbol: have // size_step(size)
        for size, have in zip(shape, actual, strict=True)
        for symbol in size_symbols(size)
    }


def nearest_multiple(size: int, step: int) -> int:
    """The multiple of `step` nearest to a size, at least `step` itself."""
    return max(step, round(size / step) * step)


def _evaluate(node: ast.expr, symbols: Mapping[str, Any], text: str) -> Any:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, symbols, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, symbols, text), _evaluate(right, symbols, text))
    raise ValueError(f"'{text}' is no size expression")
