"""Scalar float32 arithmetic whose results are the same bits on every target.

Three rules make that so. Nothing calls libm: exp, tanh and sigmoid are polynomials. A product that is added to
something passes a fence, because code generators contract `a*b + c` on one target and not on another; where a
fused multiply-add is wanted, it is written `a * b + c` without a fence, which every target fuses. Division is a
true division. Rounding is therefore that of ATen, operation by operation.

Polynomials: S. Moshier, Cephes 2.8, single precision `expf` and `tanhf`.
"""

from typing import Any

from tvm import tirx

Expression = Any

_LOG2E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_EXP_SMALLEST, _EXP_LARGEST = -87.0, 88.0
_ROUND_SHIFT = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
_TANH_POLYNOMIAL = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
_TANH_SWITCH = 0.625
_TANH_SATURATED = 9.1


def constant(value: float) -> Expression:
    """A float32 constant."""
    return tirx.const(value, "float32")


def fence(value: Expression) -> Expression:
    """The value itself, which no optimiser contracts with what surrounds it."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", value)


def product(a: Expression, b: Expression) -> Expression:
    """`a * b`, rounded before it is used."""
    return fence(a * b)


def quotient(a: Expression, b: Expression) -> Expression:
    """`a / b`, a true division even where b is constant."""
    return a / fence(b)


def named(value: Expression, body: Any) -> Expression:
    """`body(v)` where v names `value`, so that a large expression is written once."""
    variable = tirx.Var("v", value.ty.dtype if hasattr(value, "ty") else value.dtype)
    return tirx.Let(variable, value, body(variable))


def clamp(value: Expression, low: float | None, high: float | None) -> Expression:
    """`value` held between two constants, either of which may be absent."""
    if low is not None:
        value = tirx.max(value, constant(low))
    return value if high is None else tirx.min(value, constant(high))


def round_half_even(value: Expression) -> Expression:
    """The nearest integer, as a float, of |x| < 2**22; ties go to the even one.

    `tirx.nearbyint` gives the same but keeps some code generators from vectorising what follows.
    """
    return fence(value + constant(_ROUND_SHIFT)) - constant(_ROUND_SHIFT)


def relu(value: Expression) -> Expression:
    """max(x, 0)."""
    return clamp(value, 0.0, None)


def hardsigmoid(value: Expression) -> Expression:
    """clamp(x + 3, 0, 6) / 6."""
    return quotient(clamp(value + constant(3.0), 0.0, 6.0), constant(6.0))


def hardswish(value: Expression) -> Expression:
    """x * clamp(x + 3, 0, 6) / 6."""
    return named(value, lambda x: quotient(x * clamp(x + constant(3.0), 0.0, 6.0), constant(6.0)))


def exp(value: Expression) -> Expression:
    """e**x to 2 ulp for x in [-87, 88]; outside, the value at the nearer end."""

    def scaled(x: Expression) -> Expression:
        return named(
            fence(x * constant(_LOG2E) + constant(_ROUND_SHIFT)), lambda shifted: reduced(x, shifted)
        )

    def reduced(x: Expression, shifted: Expression) -> Expression:
        power = shifted - constant(_ROUND_SHIFT)
        rest = power * constant(-_LN2_LOW) + (power * constant(-_LN2_HIGH) + x)
        bits = tirx.reinterpret("int32", shifted) << tirx.const(23, "int32")
        return named(rest, lambda r: scale_by_power(polynomial(r), bits))

    def polynomial(r: Expression) -> Expression:
        inner = _horner(_EXP_POLYNOMIAL, r)
        return inner * product(r, r) + (r + constant(1.0))

    return named(clamp(value, _EXP_SMALLEST, _EXP_LARGEST), scaled)


def scale_by_power(value: Expression, bits: Expression) -> Expression:
    """`value * 2**n` for bits = n << 23 (mod 2**32), by adding to the exponent field."""
    return tirx.reinterpret("float32", tirx.reinterpret("int32", value) + bits)


def sigmoid(value: Expression) -> Expression:
    """1 / (1 + exp(-x))."""
    return quotient(constant(1.0), constant(1.0) + exp(constant(0.0) - value))


def tanh(value: Expression) -> Expression:
    """x + x**3 P(x**2) near zero, 1 - 2 / (exp(2 |x|) + 1) with the sign of x elsewhere."""

    def near(x: Expression) -> Expression:
        square = product(x, x)
        return named(square, lambda s: _horner(_TANH_POLYNOMIAL, s) * product(s, x) + x)

    def far(x: Expression) -> Expression:
        size = tirx.min(tirx.max(x, constant(0.0) - x), constant(_TANH_SATURATED))
        tail = quotient(constant(2.0), exp(size + size) + constant(1.0))
        return named(constant(1.0) - tail, lambda t: tirx.Select(x < constant(0.0), constant(0.0) - t, t))

    def both(x: Expression) -> Expression:
        small = tirx.all(x < constant(_TANH_SWITCH), x > constant(-_TANH_SWITCH))
        return tirx.Select(small, near(x), far(x))

    return named(value, both)


def _horner(coefficients: tuple[float, ...], x: Expression) -> Expression:
    first, *rest = coefficients
    result = constant(first)
    for coefficient in rest:
        result = result * x + constant(coefficient)
    return result
