"""Scalar float arithmetic whose results are the same bits on every target.

Three rules make that so. Nothing calls libm: exp, tanh and sigmoid are polynomials. A product that is added to
something passes a fence, because code generators contract `a*b + c` on one target and not on another; where a
fused multiply-add is wanted, it is written `a * b + c` without a fence, which every target fuses. Division is a
true division. Rounding is therefore that of ATen and of `mattecompress.ops.reproducible`, operation by operation.

In float16 every function rounds as its operations do, but exp, sigmoid and tanh need float32: see `in_single`.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx

from mattecompress.ops.reproducible import (
    EXP_LARGEST,
    EXP_POLYNOMIAL,
    EXP_SMALLEST,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    ROUND_SHIFT,
    TANH_SATURATED,
)

Expression = Any

ERF_SCALE = 0.3275911
ERF_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH_OF_LOG, LN2_LOW_OF_LOG = 0.693359375, 2.12194440e-4
ROOT_HALF_BITS = 0x3F3504F3
"""The bits of sqrt(1/2), as float32."""


def constant(value: float, dtype: str = "float32") -> Expression:
    """A floating-point constant."""
    return tirx.const(value, dtype)


def dtype_of(value: Expression) -> str:
    """The type of an expression, such as `float32`."""
    return str(value.ty.dtype if hasattr(value, "ty") else value.dtype)


def like(value: Expression, number: float) -> Expression:
    """A constant of the type of `value`."""
    return constant(number, dtype_of(value))


def fence(value: Expression) -> Expression:
    """The value itself, which no optimiser contracts with what surrounds it."""
    return tirx.call_llvm_pure_intrin(dtype_of(value), "llvm.arithmetic.fence", value)


def product(a: Expression, b: Expression) -> Expression:
    """`a * b`, rounded before it is used; a product of integers is exact."""
    return fence(a * b) if dtype_of(a).startswith("float") else a * b


def fused(a: Expression, b: Expression, c: Expression) -> Expression:
    """`a * b + c`, rounded once, by an instruction that the target has to have."""
    return tirx.call_llvm_pure_intrin(dtype_of(a), "llvm.fma", a, b, c)


def quotient(a: Expression, b: Expression) -> Expression:
    """`a / b`, a true division even where b is constant."""
    return a / fence(b)


def named(value: Expression, body: Any) -> Expression:
    """`body(v)` where v names `value`, so that a large expression is written once."""
    variable = tirx.Var("v", dtype_of(value))
    return tirx.Let(variable, value, body(variable))


def clamp(value: Expression, low: float | None, high: float | None) -> Expression:
    """`value` held between two constants, either of which may be absent."""
    if low is not None:
        value = tirx.max(value, like(value, low))
    return value if high is None else tirx.min(value, like(value, high))


def relu(value: Expression) -> Expression:
    """max(x, 0)."""
    return clamp(value, 0.0, None)


def hardsigmoid(value: Expression) -> Expression:
    """clamp(x + 3, 0, 6) / 6."""
    return _sixth(clamp(value + like(value, 3.0), 0.0, 6.0))


def hardswish(value: Expression) -> Expression:
    """x * clamp(x + 3, 0, 6) / 6."""

    def element(x: Expression) -> Expression:
        gate = clamp(x + like(x, 3.0), 0.0, 6.0)
        return x * _sixth(gate) if dtype_of(x) == "float16" else _sixth(x * gate)

    return named(value, element)


def _sixth(value: Expression) -> Expression:
    """A sixth; of a float16, by one multiplication: division is slow and no program's answer hangs on its last bit."""
    if dtype_of(value) == "float16":
        return product(value, like(value, 1 / 6))
    return quotient(value, constant(6.0))


def single(value: Expression) -> Expression:
    """The value as float32."""
    return value if dtype_of(value) == "float32" else value.astype("float32")


def in_single(function: Callable[[Expression], Expression]) -> Callable[[Expression], Expression]:
    """The function, evaluated in float32 whatever the type of its argument, which the result gets."""

    def element(value: Expression) -> Expression:
        result = function(single(value))
        return result if dtype_of(value) == "float32" else result.astype(dtype_of(value))

    return element


def exp(value: Expression) -> Expression:
    """e**x to 2 ulp for x in [-87, 88]; outside, the value at the nearer end."""

    def result(r: Expression, bits: Expression) -> Expression:
        return scale_by_power(_horner(EXP_POLYNOMIAL, r) * product(r, r) + (r + constant(1.0)), bits)

    return named(clamp(value, EXP_SMALLEST, EXP_LARGEST), lambda x: _reduced(x, result))


def _reduced(x: Expression, body: Any) -> Expression:
    """`body(r, n << 23)` with x = n * ln(2) + r, n an integer and |r| <= ln(2) / 2."""

    def reduced(shifted: Expression) -> Expression:
        power = shifted - constant(ROUND_SHIFT)
        rest = power * constant(-LN2_LOW) + (power * constant(-LN2_HIGH) + x)
        bits = tirx.reinterpret("int32", shifted) << tirx.const(23, "int32")
        return named(rest, lambda r: body(r, bits))

    return named(fence(x * constant(LOG2E) + constant(ROUND_SHIFT)), reduced)


def scale_by_power(value: Expression, bits: Expression) -> Expression:
    """`value * 2**n` for bits = n << 23 (mod 2**32), by adding to the exponent field."""
    return tirx.reinterpret("float32", tirx.reinterpret("int32", value) + bits)


def sigmoid(value: Expression) -> Expression:
    """1 / (1 + exp(-x))."""
    return quotient(constant(1.0), constant(1.0) + exp(constant(0.0) - value))


def tanh(value: Expression) -> Expression:
    """m / (m + 2) with m = exp(2 |x|) - 1 = 2**n (exp(r) - 1) + (2**n - 1), and the sign of x.

    What m + 2 loses in rounding is put back: q - q * lost / (m + 2), where 1 / (m + 2) = (1 - q) / 2. Far out, where
    1 - q is rounding itself, nothing needs to be.
    """

    def quotient_of(m: Expression) -> Expression:
        return named(fence(m + constant(2.0)), lambda below: corrected(m, below))

    def corrected(m: Expression, below: Expression) -> Expression:
        lost = m - (below - constant(2.0))

        def near(q: Expression) -> Expression:
            inverse = tirx.max(q * constant(-0.5) + constant(0.49), constant(0.0))
            return product(q, constant(0.0) - lost) * inverse + q

        return named(m / below, near)

    def result(r: Expression, bits: Expression) -> Expression:
        less_one = _horner(EXP_POLYNOMIAL, r) * product(r, r) + r
        scale = scale_by_power(constant(1.0), bits)
        return named(scale, lambda s: named(less_one * s + (s - constant(1.0)), quotient_of))

    def signed(x: Expression) -> Expression:
        size = tirx.min(tirx.max(x, constant(0.0) - x), constant(TANH_SATURATED))
        bits = tirx.reinterpret("int32", x) & tirx.const(-(1 << 31), "int32")
        positive = named(size + size, lambda doubled: _reduced(doubled, result))
        return tirx.reinterpret("float32", tirx.reinterpret("int32", positive) | bits)

    return named(value, signed)


def gelu(value: Expression) -> Expression:
    """x / 2 * (1 + erf(x / sqrt(2))), with erf to 2e-7: Abramowitz and Stegun, "Handbook", 1964, 7.1.26."""

    def element(x: Expression) -> Expression:
        size = tirx.max(x, constant(0.0) - x)
        t = quotient(constant(1.0), size * constant(ERF_SCALE * 0.5**0.5) + constant(1.0))
        fall = exp(product(product(x, x), constant(-0.5)))
        tail = named(t, lambda t: product(product(_horner(ERF_POLYNOMIAL, t), t), fall))
        half = product(x, constant(0.5))
        return named(
            tail, lambda r: tirx.max(x, constant(0.0)) - product(tirx.max(half, constant(0.0) - half), r)
        )

    return named(value, element)


def log(value: Expression) -> Expression:
    """The natural logarithm of a normal number above 0, to 2 ulp: as `logf` of the Cephes library."""

    def result(r: Expression, exponent: Expression) -> Expression:
        square = product(r, r)
        tail = product(product(_horner(LOG_POLYNOMIAL, r), r), square) + exponent * constant(-LN2_LOW_OF_LOG)
        return (r + (square * constant(-0.5) + tail)) + exponent * constant(LN2_HIGH_OF_LOG)

    def reduced(bits: Expression) -> Expression:
        power = (bits - tirx.const(ROOT_HALF_BITS, "int32")) >> tirx.const(23, "int32")

        def mantissa(n: Expression) -> Expression:
            near_one = tirx.reinterpret("float32", bits - (n << tirx.const(23, "int32")))
            return named(near_one - constant(1.0), lambda r: result(r, n.astype("float32")))

        return named(power, mantissa)

    return named(tirx.reinterpret("int32", value), reduced)


def _horner(coefficients: tuple[float, ...], x: Expression) -> Expression:
    first, *rest = coefficients
    result = constant(first)
    for coefficient in rest:
        result = result * x + constant(coefficient)
    return result
