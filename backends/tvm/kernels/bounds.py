"""Sums compared with integers and packed, so that a binary layer hands bits on to the next.

Meaning, with t an output's unsigned total of counts, and result = table - factor * t as in `bitserial`:

    bit = low <= result <= high                    where low <= high
    bit = result >= low or result <= high          where low > high

Either holds just when t is in an interval that may run around the end of the unsigned numbers, and that is one
subtraction and one comparison:

    bit = t - start <= span                        in unsigned arithmetic of `bits` bits
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mattecompress.backends.tvm.kernels.window import Array


@dataclass(frozen=True)
class Bounds:
    """Start and span of every total's interval, in the shape of the table (row classes, column classes, O)."""

    start: Array
    span: Array


def find_bounds(table: Array, factor: int, low: Array, high: Array, most: int, bits: int) -> Bounds:
    """The bounds on totals from 0 to `most` that mean bounds `low` and `high` (O,) on results.

    bits: of a total; `most` is less than 2**bits - 1, so that one number is never reached.
    """
    table, low, high = (np.asarray(value, np.int64) for value in (table, low, high))
    around = low > high
    last = np.where(around, low - 1, high)
    first = np.where(around, high + 1, low)
    begin = np.maximum(-((last - table) // factor), 0)
    end = np.minimum((table - first) // factor, most)
    empty = begin > end
    start = np.where(empty, most + 1, begin)
    span = np.where(empty, 0, end - begin)
    modulus = 1 << bits
    start = np.where(around, start + span + 1, start) % modulus
    span = np.where(around, modulus - 2 - span, span)
    dtype: Any = f"uint{bits}"
    return Bounds(start.astype(dtype), span.astype(dtype))
