"""Float operations of which every rounding is stated, so that every backend gives the same bits.

PyTorch's own sums and functions depend on its build and on the width of the machine's vectors. In a program that
rounds to codes or signs, a difference in the last place turns codes, and recurrent states spread them; so lowering
puts these operations in their place.

    multiply-add:  fused, a * b + c rounded once
    exp:           2**n P(r) with n = round(x / ln 2), r = x - n ln 2, for x held in [-87, 88]
    sigmoid:       1 / (1 + exp(-x))
    tanh:          m / (m + 2) with m = exp(2 |x|) - 1, what m + 2 loses put back, and the sign of x
    plane mean:    each row from left to right, then the rows from top to bottom, divided by their number

Polynomial: S. Moshier, Cephes 2.8, single precision `expf`.
"""

import torch
from torch import Tensor

LOG2E = 1.44269504088896341
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
EXP_SMALLEST, EXP_LARGEST = -87.0, 88.0
ROUND_SHIFT = 12582912.0
"""1.5 * 2**23: adding it rounds to the nearest integer, ties to even."""
TANH_SATURATED = 9.1


def multiply_add(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """`a * b + c` of float32, rounded to float32.

    The product is exact in float64; the sum is rounded twice. In exp and sigmoid that is the same as once, in tanh
    for all but six arguments below 2**-18: tried for every float32.
    """
    return (a.double() * _double(b) + _double(c)).float()


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).double()


def exp(x: Tensor) -> Tensor:
    """e**x of float32 to 2 units in the last place; beyond -87 and 88, the value there."""
    rest, scale = _reduced(x.clamp(EXP_SMALLEST, EXP_LARGEST))
    return multiply_add(_polynomial(rest), rest * rest, rest + 1) * scale


def _reduced(x: Tensor) -> tuple[Tensor, Tensor]:
    """r and 2**n with x = n ln 2 + r."""
    power = multiply_add(x, LOG2E, ROUND_SHIFT) - ROUND_SHIFT
    rest = multiply_add(power, -LN2_LOW, multiply_add(power, -LN2_HIGH, x))
    return rest, torch.ldexp(torch.ones_like(x), power.int())


def _polynomial(x: Tensor) -> Tensor:
    """(e**x - 1 - x) / x**2."""
    first, *rest = EXP_POLYNOMIAL
    result = torch.full_like(x, first)
    for coefficient in rest:
        result = multiply_add(result, x, coefficient)
    return result


@torch.library.custom_op("matte::sigmoid", mutates_args=(), schema="(Tensor x) -> Tensor")
def sigmoid(x: Tensor) -> Tensor:
    """Sigmoid of float32 `x` of any shape."""
    return torch.div(torch.ones_like(x), 1 + exp(-x))


@torch.library.custom_op("matte::tanh", mutates_args=(), schema="(Tensor x) -> Tensor")
def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent of float32 `x` of any shape."""
    size = x.abs().clamp_max(TANH_SATURATED)
    rest, scale = _reduced(size + size)
    less_one = multiply_add(_polynomial(rest), rest * rest, rest)
    grown = multiply_add(less_one, scale, scale - 1)
    below = grown + 2
    lost = grown - (below - 2)
    quotient = torch.div(grown, below)
    inverse = multiply_add(quotient, -0.5, 0.49).clamp_min(0)
    return torch.copysign(multiply_add(quotient * -lost, inverse, quotient), x)


@torch.library.custom_op("matte::plane_mean", mutates_args=(), schema="(Tensor x) -> Tensor")
def plane_mean(x: Tensor) -> Tensor:
    """Mean of float32 `x` (N, C, H, W) over H and W: (N, C, 1, 1)."""
    return _sum(_sum(x, 3), 2) / float(x.shape[2] * x.shape[3])


def _sum(x: Tensor, axis: int) -> Tensor:
    """The sum along an axis, one after the other; the axis stays, with size 1."""
    first, *others = x.split(1, axis)
    total: Tensor = first.clone()
    for other in others:
        total += other
    return total


@sigmoid.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@tanh.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@plane_mean.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 1, 1))
