"""The float functions of `mattecompress.ops.reproducible` and its resize as ONNX local functions, product by product.

ONNX has no fused multiply-add: it is a product and a sum in float64, as in the reference.
"""

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

_MULTIPLY_ADD = """
multiply_add (a, b, c) => (y)
{
  wide_a = Cast <to = 11> (a)
  wide_b = Cast <to = 11> (b)
  wide_c = Cast <to = 11> (c)
  product = Mul (wide_a, wide_b)
  sum = Add (product, wide_c)
  y = Cast <to = 1> (sum)
}
"""


def _exp_polynomial() -> str:
    """Horner's rule, step by step."""
    first, *rest = EXP_POLYNOMIAL
    lines = [f"sum_0 = Constant <value_float = {first!r}> ()"]
    for index, coefficient in enumerate(rest):
        lines.append(f"term_{index} = Constant <value_float = {coefficient!r}> ()")
        lines.append(f"sum_{index + 1} = matte.multiply_add (sum_{index}, x, term_{index})")
    lines.append(f"y = Identity (sum_{len(rest)})")
    return "exp_polynomial (x) => (y)\n{\n  " + "\n  ".join(lines) + "\n}\n"


_LOWEST_POWER, _HIGHEST_POWER = -126, 127
_POWERS_OF_TWO = ", ".join(repr(2.0**power) for power in range(_LOWEST_POWER, _HIGHEST_POWER + 1))

_EXP_REDUCED = f"""
exp_reduced (x) => (rest, scale)
{{
  log2e = Constant <value_float = {LOG2E!r}> ()
  shift = Constant <value_float = {ROUND_SHIFT!r}> ()
  minus_high = Constant <value_float = {-LN2_HIGH!r}> ()
  minus_low = Constant <value_float = {-LN2_LOW!r}> ()
  powers = Constant <value = float[{_HIGHEST_POWER - _LOWEST_POWER + 1}] {{{_POWERS_OF_TWO}}}> ()
  lowest = Constant <value = int32 {{{_LOWEST_POWER}}}> ()
  highest = Constant <value = int32 {{{_HIGHEST_POWER}}}> ()
  shifted = matte.multiply_add (x, log2e, shift)
  power = Sub (shifted, shift)
  near_rest = matte.multiply_add (power, minus_high, x)
  rest = matte.multiply_add (power, minus_low, near_rest)
  whole = Cast <to = 6> (power)
  known = Clip (whole, lowest, highest)
  place = Sub (known, lowest)
  scale = Gather <axis = 0> (powers, place)
}}
"""

_EXP = f"""
exp (x) => (y)
{{
  low = Constant <value_float = {EXP_SMALLEST!r}> ()
  high = Constant <value_float = {EXP_LARGEST!r}> ()
  one = Constant <value_float = 1.0> ()
  held = Clip (x, low, high)
  rest, scale = matte.exp_reduced (held)
  series = matte.exp_polynomial (rest)
  square = Mul (rest, rest)
  start = Add (rest, one)
  mantissa = matte.multiply_add (series, square, start)
  y = Mul (mantissa, scale)
}}
"""

# As -(-1 / sum), since ONNX Runtime turns x * (1 / sum) into x / sum, which rounds once.
_SIGMOID = """
sigmoid (x) => (y)
{
  one = Constant <value_float = 1.0> ()
  minus_one = Constant <value_float = -1.0> ()
  negative = Neg (x)
  grown = matte.exp (negative)
  sum = Add (grown, one)
  below = Div (minus_one, sum)
  y = Neg (below)
}
"""

_TANH = f"""
tanh (x) => (y)
{{
  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  two = Constant <value_float = 2.0> ()
  minus_half = Constant <value_float = -0.5> ()
  half = Constant <value_float = 0.49> ()
  end = Constant <value_float = {TANH_SATURATED!r}> ()
  size = Abs (x)
  held = Min (size, end)
  double = Add (held, held)
  rest, scale = matte.exp_reduced (double)
  series = matte.exp_polynomial (rest)
  square = Mul (rest, rest)
  less_one = matte.multiply_add (series, square, rest)
  start = Sub (scale, one)
  grown = matte.multiply_add (less_one, scale, start)
  below = Add (grown, two)
  kept = Sub (below, two)
  lost = Sub (grown, kept)
  quotient = Div (grown, below)
  slope = matte.multiply_add (quotient, minus_half, half)
  inverse = Relu (slope)
  gain = Neg (lost)
  share = Mul (quotient, gain)
  positive = matte.multiply_add (share, inverse, quotient)
  negative = Neg (positive)
  is_negative = Less (x, zero)
  y = Where (is_negative, negative, positive)
}}
"""

_PLANE_MEAN = """
plane_mean (x) => (y)
{
  rows = Constant <value_int = 2> ()
  columns = Constant <value_int = 3> ()
  row_axis = Constant <value_ints = [2]> ()
  column_axis = Constant <value_ints = [3]> ()
  last = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  along_rows = CumSum (x, columns)
  row_sums = Slice (along_rows, last, end, column_axis)
  along_columns = CumSum (row_sums, rows)
  total = Slice (along_columns, last, end, row_axis)
  sizes = Shape <start = 2> (x)
  pixels = ReduceProd <keepdims = 0> (sizes)
  count = Cast <to = 1> (pixels)
  y = Div (total, count)
}
"""

_RESIZE_BILINEAR = """
resize_bilinear (x, row_low, row_high, row_near, row_far, column_low, column_high, column_near, column_far) => (y)
{
  above = Gather <axis = 2> (x, row_low)
  below = Gather <axis = 2> (x, row_high)
  share_above = Mul (above, row_near)
  rows = matte.multiply_add (below, row_far, share_above)
  left = Gather <axis = 3> (rows, column_low)
  right = Gather <axis = 3> (rows, column_high)
  share_left = Mul (left, column_near)
  y = matte.multiply_add (right, column_far, share_left)
}
"""

FUNCTIONS = {
    "multiply_add": _MULTIPLY_ADD,
    "exp_polynomial": _exp_polynomial(),
    "exp_reduced": _EXP_REDUCED,
    "exp": _EXP,
    "sigmoid": _SIGMOID,
    "tanh": _TANH,
    "plane_mean": _PLANE_MEAN,
    "resize_bilinear": _RESIZE_BILINEAR,
}
"""Body of each function in ONNX's text form."""

NEEDS = {
    "exp_polynomial": ("multiply_add",),
    "exp_reduced": ("multiply_add",),
    "exp": ("exp_reduced", "exp_polynomial", "multiply_add"),
    "sigmoid": ("exp",),
    "tanh": ("exp_reduced", "exp_polynomial", "multiply_add"),
    "resize_bilinear": ("multiply_add",),
}
"""Functions that a function calls; they stand before it in `FUNCTIONS`."""
