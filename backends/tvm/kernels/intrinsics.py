"""Operations on bytes packed into wider lanes, written as tirx intrinsics that vectorise like any arithmetic.

A lane of `u` bytes (u = 2 or 4) carries `u` neighbouring input channels, or groups of eight of them, for one
output channel; so a narrow layer still fills a register, and one broadcast feeds every output channel. The
vectoriser widens a call to all lanes; only then does its rule in `instructions.py` spell it for the instruction set.

    count_bytes(x)    bits set in each byte of a lane, left in that byte
    add_bytes(x)      the bytes of a lane, unsigned, summed to int32
    accumulate_counts(s, x)  the bytes of x added in neighbouring pairs to the 16-bit halves of s (`pairs`), or all
                      four to s (`dot`)
    add_pairs(s)      the 16-bit halves of a lane, unsigned, summed to int32
    mark_bytes(x, p)  255 in each byte of x that has a bit in common with p, else 0
    count_marks(s, m) 1 added to each byte of s that is marked in m
    multiply(a, b)    a0*b0 + a1*b1 + a2*b2 + a3*b3 of the signed bytes of two int32 lanes (of unsigned `a` for the
                      kinds in `UNSIGNED`); for `smull` and `smlal`, `b` is four lanes that `pair_bytes` has reordered
                      and `a` is one word for all
    accumulate(s, p)  s + p, in one instruction where `p` is a product that can take a sum
    load_word(...)    word i of n that begin at a byte in memory, wherever that is
    look_up(t, i)     the byte of a table of 16 at each byte of i, with AVX2
    gather_bits(f0, ..., f7)  the byte whose bit i is f_i; each f_i is a `flag`
    pack_within(t, ...)  the byte whose bit i says whether t_i - start_i <= span_i, unsigned; `t` are eight totals
    pack_octets(t, ...)  the same for every byte of eight neighbouring words t_i: bit i of byte k for byte k of t_i
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from tvm import tirx
from tvm.target import Target, codegen

from mattecompress.backends.tvm.compute.mathematics import dtype_of
from mattecompress.backends.tvm.kernels import instructions

Expression = Any

MOST_PAIRS = 4095
"""Pairs of counts of up to 8 that 16 bits can hold."""

UNSIGNED = ("vnni", "maddubs", "madd")
"""Multiplications that take the bytes of the first operand as unsigned."""

MOST_OF_PAIR = 64
"""The largest magnitude of weights of which two, each times 255, add up to what 16 bits can hold."""


def current_target() -> Target:
    """The target of the enclosing `with target:`, or this machine without extensions."""
    return Target.current(allow_none=True) or Target("llvm")


def instruction_set(target: Target) -> str:
    """`aarch64`, `arm`, `x86` or `other`."""
    triple = str(target.attrs.get("mtriple", "")) or codegen.llvm_get_system_triple()
    families = {"aarch64": ("aarch64", "arm64"), "arm": ("arm",), "x86": ("x86_64", "i686", "i386")}
    return next((name for name, starts in families.items() if triple.startswith(starts)), "other")


def has_fused_multiply_add(target: Target) -> bool:
    """Whether `a * b + c` of floats is one instruction with one rounding."""
    needed = {"x86": "fma", "arm": "vfp4"}.get(instruction_set(target))
    return needed is None or codegen.target_has_features(needed, target)


def multiplication(target: Target, lanes: int, largest: int) -> str:
    """Which `multiply` suits vectors of `lanes` int32 lanes and weights of magnitudes up to `largest`.

    `sdot` and `vnni` are the dot product instructions. On x86 `maddubs` adds products of bytes in pairs to int16, where
    the weights are small enough for that; `madd` multiplies pairs of int16. `smull_*` and `smlal_*` multiply bytes to
    int16 on NEON, the latter where no two products of weights overflow it.
    """
    family = instruction_set(target)
    if family == "aarch64" and lanes in (2, 4) and codegen.target_has_features("dotprod", target):
        return "sdot"
    if family in ("aarch64", "arm") and lanes == 4:
        return f"{'smlal' if largest < 128 else 'smull'}_{family}"
    if family == "x86" and lanes in (4, 8, 16):
        wide = lanes == 16 or codegen.target_has_features("avx512vl", target)
        if wide and codegen.target_has_features("avx512vnni", target):
            return "vnni"
        small = largest <= MOST_OF_PAIR and codegen.target_has_features("ssse3", target)
        return "maddubs" if small else "madd"
    return "plain"


def pair_bytes(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Reorder the bytes of int32 weights (..., 4 lanes) for `smull`: bytes 0, 1 of each lane, then bytes 2, 3."""
    pairs = words.reshape(-1, 4).view(np.int16).reshape(-1, 4, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).view(np.int32).reshape(words.shape)


def count_bytes(x: Expression) -> Expression:
    """Bits set in each byte of unsigned `x`, left in that byte."""
    return tirx.call_intrin(dtype_of(x), "tirx.matte_count_bytes", x)


def add_bytes(x: Expression) -> Expression:
    """The bytes of unsigned `x` summed to int32."""
    return tirx.call_intrin("int32", "tirx.matte_add_bytes", x)


def counting(target: Target, unit: int, lanes: int, steps: int) -> str:
    """How to sum `steps` byte counts in vectors of `lanes` lanes of `unit` bytes.

    `pairs_*`: NEON adds neighbouring bytes to 16 bits as they come. Elsewhere bytes add up until they are full, and
    go to an int32 by a dot product with ones (`dot_*`) or by shifts (`plain`).
    """
    family = instruction_set(target)
    if family in ("aarch64", "arm") and lanes * unit in (8, 16) and steps <= MOST_PAIRS:
        return f"pairs_{family}"
    dot = multiplication(target, lanes, 0)
    return f"dot_{dot}" if unit == 4 and dot in ("vnni", "maddubs") else "plain"


def accumulate_counts(kind: str, total: Expression, counts: Expression) -> Expression:
    """`total` and the bytes of `counts`, both of one unsigned type; `kind` is `dot_*` or `pairs_*` of `counting`."""
    return tirx.call_intrin(dtype_of(total), f"tirx.matte_accumulate_{kind}", total, counts)


def add_pairs(kind: str, x: Expression) -> Expression:
    """The 16-bit halves of unsigned `x` summed to int32; `kind` as from `counting`."""
    if dtype_of(x) == "uint16":
        return x.astype("int32")
    return tirx.call_intrin("int32", f"tirx.matte_add_{kind}", x)


def mark_bytes(x: Expression, places: Expression) -> Expression:
    """255 in each byte of unsigned `x` that has a bit in common with `places`, else 0."""
    return tirx.call_intrin(dtype_of(x), "tirx.matte_mark_bytes", x, places)


def count_marks(total: Expression, marks: Expression) -> Expression:
    """`total` with 1 added to each byte that `mark_bytes` has marked."""
    return tirx.call_intrin(dtype_of(total), "tirx.matte_count_marks", total, marks)


def multiply(kind: str, a: Expression, b: Expression) -> Expression:
    """The dot product of the four bytes of int32 `a` and `b`; `kind` as from `multiplication`."""
    return tirx.call_intrin("int32", f"tirx.matte_multiply_{kind}", a, b)


def accumulate(total: Expression, product: Expression) -> Expression:
    """`total + product`, both int32."""
    return tirx.call_intrin("int32", "tirx.matte_accumulate", total, product)


def words_loaded_together(words: int, most: int, target: Target) -> int:
    """How many of `words` words to load as one vector: a power of two up to `most` that divides them.

    NEON spreads an element of a register over another in one instruction, a word of memory in two.
    """
    return gcd(words, most) if instruction_set(target) == "aarch64" else 1


def load_word(dtype: str, first: Expression, last: Expression, index: Expression, count: int) -> Expression:
    """Word `index` of `count` words of type `dtype` in memory; `first` and `last` load their outermost bytes.

    The words are loaded as one vector where `index` is a constant by then, and one element is taken.
    """
    return tirx.call_intrin(dtype, "tirx.matte_load_word", first, last, index, count)


def look_up(table: Expression, index: Expression) -> Expression:
    """The bytes of `table`, a vector of 16, at those of `index`, a vector of 32, on x86 with AVX2."""
    return tirx.call_intrin(dtype_of(index), "tirx.matte_look_up", table, index)


def gather_bits(flags: list[Expression]) -> Expression:
    """The byte whose bit i is `flags[i]`, eight results of `flag`."""
    return tirx.call_intrin("uint8", f"tirx.matte_gather_bits_{_gathering().kind}", *flags)


def flag(condition: Expression) -> Expression:
    """Whether a condition holds, as a uint8 that `gather_bits` takes."""
    return tirx.Select(condition, tirx.const(_gathering().set, "uint8"), tirx.const(0, "uint8"))


def octets_gathered() -> int:
    """How many neighbouring results of `gather_bits` the current target makes at once at most, a power of two."""
    return _gathering().octets


@dataclass(frozen=True)
class _Gathering:
    """How flags become bits: the rule, the byte that stands for a set bit, and results at once."""

    kind: str
    set: int
    octets: int


def _gathering() -> _Gathering:
    target = current_target()
    wide = codegen.target_has_features("avx2", target)
    rules = {
        "x86": _Gathering("signs", 255, 4 if wide else 2),
        "aarch64": _Gathering("places", 255, 8),
        "arm": _Gathering("places", 255, 1),
    }
    return rules.get(instruction_set(target), _Gathering("ones", 1, 1))


def pack_within(kind: str, read: Callable[[int], tuple[Expression, ...]]) -> Expression:
    """Eight totals compared and packed to uint8; `read(i)` loads total, start and span i, which are neighbours.

    kind: as `counting` names it, where totals still are pairs of 16 bits, else `plain`.
    """
    kind = kind if kind.startswith("pairs") else "plain"
    return tirx.call_intrin("uint8", f"tirx.matte_pack_within_{kind}", *read(0), *read(7))


def pack_octets(read: Callable[[int], tuple[Expression, ...]]) -> Expression:
    """Eight words of byte totals compared and packed to one word; `read(i)` as for `pack_within`."""
    first = read(0)
    return tirx.call_intrin(dtype_of(first[0]), "tirx.matte_pack_octets", *first, *read(7))


instructions.register()
