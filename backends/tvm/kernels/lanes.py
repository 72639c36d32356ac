"""Vectors as the rules of `instructions.py` and `multiplications.py` see them: lanes, and the bytes of lanes."""

from collections.abc import Callable
from typing import Any

from tvm import tirx

Expression = Any
Rule = Callable[[Any], Expression]
"""From a call that the vectoriser has widened to what it is spelled as."""


def shape(x: Expression) -> tuple[int, int]:
    """Lanes, and bytes of a lane."""
    dtype = x.ty.dtype
    return dtype.lanes, dtype.bits // 8


def dtype_of_lane(x: Expression) -> str:
    """The unsigned type of one lane."""
    return f"uint{8 * shape(x)[1]}"


def vector(name: str, lanes: int) -> str:
    """The type of so many lanes of the type called `name`."""
    return name if lanes == 1 else f"{name}x{lanes}"


def splat(value: int, dtype: str, lanes: int) -> Expression:
    """A constant in every lane."""
    constant = tirx.const(value, dtype)
    return constant if lanes == 1 else tirx.Broadcast(constant, lanes)


def signed_bytes(x: Expression) -> Expression:
    """The bytes of 32-bit lanes, as int8."""
    return tirx.reinterpret(f"int8x{4 * shape(x)[0]}", x)


def octets_of(x: Expression) -> Expression:
    """The bytes of lanes, as uint8."""
    lanes, size = shape(x)
    return tirx.reinterpret(vector("uint8", lanes * size), x)
