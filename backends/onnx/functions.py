"""The `matte::` operations as ONNX local functions: standard operators only, so that any ONNX runtime runs them.

Their attributes are those of the operations in `mattecompress.ops`, with ONNX's spelling of strides, pads,
dilations and group. A packed tensor is unpacked to -1, 0 and +1 and convolved in float32, which is exact: the sums
stay far below 2**24. Float functions are spelled out product by product, as `mattecompress.ops.reproducible` states
them.
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

DOMAIN = "matte"
VERSION = 1
OPSET = 21

_UNPACK_BITS = """
unpack_bits <channels, group, encoding> (bits) => (image)
{
  places = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  unit = Constant <value = uint8[1] {1}> ()
  first = Constant <value = int32 {0}> ()
  past = Constant <value = int32 {256}> ()
  step = Constant <value = int32 {1}> ()
  zeros = Constant <value_ints = [0, 0, 0]> ()
  zero = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  count = Constant <value_int: int = @channels> ()
  groups = Constant <value_int: int = @group> ()
  kind = Constant <value_string: string = @encoding> ()
  signs = Constant <value_string = "signs"> ()
  minus_one = Constant <value_float = -1.0> ()
  nothing = Constant <value_float = 0.0> ()
  plus_one = Constant <value_float = 1.0> ()
  signed = Equal (kind, signs)
  clear = Where (signed, minus_one, nothing)
  counted = Range (first, past, step)
  narrow = Cast <to = 2> (counted)
  bytes = Unsqueeze (narrow, last)
  shifted = BitShift <direction = "RIGHT"> (bytes, places)
  digits = BitwiseAnd (shifted, unit)
  flags = Cast <to = 9> (digits)
  table = Where (flags, plus_one, clear)
  indices = Cast <to = 6> (bits)
  octets = Gather <axis = 0> (table, indices)
  group_vector = Reshape (groups, last)
  split = Concat <axis = 0> (zeros, group_vector, last)
  grouped = Reshape (octets, split)
  end = Reshape (count, last)
  kept = Slice (grouped, zero, end, last)
  merged = Concat <axis = 0> (zeros, last)
  flat = Reshape (kept, merged)
  image = Transpose <perm = [0, 3, 1, 2]> (flat)
}
"""

_PACK_BITS = """
pack_bits <group, word> (flags) => (bits)
{
  weights = Constant <value = float[8,1] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  row = Constant <value_ints = [-1, 8]> ()
  zeros = Constant <value_ints = [0, 0, 0]> ()
  zero = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  four = Constant <value_ints = [4]> ()
  clear = Constant <value_float = 0.0> ()
  groups = Constant <value_int: int = @group> ()
  width = Constant <value_int: int = @word> ()
  digits = Cast <to = 1> (flags)
  lines = Transpose <perm = [0, 2, 3, 1]> (digits)
  group_vector = Reshape (groups, last)
  split = Concat <axis = 0> (zeros, group_vector, last)
  grouped = Reshape (lines, split)
  channels = Shape <start = 4, end = 5> (grouped)
  missing = Neg (channels)
  spare = Mod (missing, width)
  amounts = Concat <axis = 0> (zero, spare)
  padded = Pad (grouped, amounts, clear, four)
  octets = Reshape (padded, row)
  sums = MatMul (octets, weights)
  bytes = Cast <to = 2> (sums)
  pixels = Shape <start = 0, end = 3> (padded)
  lengths = Concat <axis = 0> (pixels, last)
  bits = Reshape (bytes, lengths)
}
"""

_PACK_SIGNS = """
pack_signs <group, word> (x, threshold) => (bits)
{
  shape = Constant <value_ints = [-1, 1, 1]> ()
  limit = Reshape (threshold, shape)
  flags = GreaterOrEqual (x, limit)
  bits = matte.pack_bits <group: int = @group, word: int = @word> (flags)
}
"""

_PACK_UNITS = """
pack_units <group, word> (x) => (bits)
{
  half = Constant <value_float = 0.5> ()
  flags = Greater (x, half)
  bits = matte.pack_bits <group: int = @group, word: int = @word> (flags)
}
"""

_BINARY_CONV2D = """
binary_conv2d <channels, strides, pads, dilations, group, encoding, border> (bits, weight) => (y)
{
  axes = Constant <value_ints = [2, 3]> ()
  amounts = Constant <value_ints: ints = @pads> ()
  outside = Constant <value_int: int = @border> ()
  fill = Cast <to = 1> (outside)
  image = matte.unpack_bits <channels: int = @channels, group: int = @group, encoding: string = @encoding> (bits)
  signs = matte.unpack_bits <channels: int = @channels, group = 1, encoding = "signs"> (weight)
  padded = Pad (image, amounts, fill, axes)
  sums = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (padded, signs)
  y = Cast <to = 6> (sums)
}
"""

_BINARY_DEPTHWISE_CONV2D = """
binary_depthwise_conv2d <channels, strides, pads, dilations, encoding, border> (bits, weight) => (y)
{
  axes = Constant <value_ints = [2, 3]> ()
  first = Constant <value_ints = [0]> ()
  amounts = Constant <value_ints: ints = @pads> ()
  outside = Constant <value_int: int = @border> ()
  fill = Cast <to = 1> (outside)
  image = matte.unpack_bits <channels: int = @channels, group = 1, encoding: string = @encoding> (bits)
  filters = Unsqueeze (weight, first)
  planes = matte.unpack_bits <channels: int = @channels, group = 1, encoding = "signs"> (filters)
  signs = Transpose <perm = [1, 0, 2, 3]> (planes)
  padded = Pad (image, amounts, fill, axes)
  sums = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @channels> (padded, signs)
  y = Cast <to = 6> (sums)
}
"""

_QUANTIZE = """
quantize <scale, zero_point, bits> (x) => (q)
{
  step = Constant <value_float: float = @scale> ()
  zero = Constant <value_int: int = @zero_point> ()
  width = Constant <value_int: int = @bits> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  zero_code = Cast <to = 2> (zero)
  codes = Pow (two, width)
  last = Sub (codes, one)
  last_code = Cast <to = 2> (last)
  unbounded = QuantizeLinear (x, step, zero_code)
  q = Clip (unbounded, , last_code)
}
"""

_DEQUANTIZE = """
dequantize <scale, zero_point> (q) => (x)
{
  step = Constant <value_float: float = @scale> ()
  zero = Constant <value_int: int = @zero_point> ()
  zero_code = Cast <to = 2> (zero)
  x = DequantizeLinear (q, step, zero_code)
}
"""

_QUANTIZED_CONV2D = """
quantized_conv2d <zero_point, weight_bits, strides, pads, dilations, group> (q, weight) => (y)
{
  zero = Constant <value_int: int = @zero_point> ()
  zero_code = Cast <to = 2> (zero)
  middle = Constant <value = int32 {128}> ()
  weight_zero = Constant <value = uint8 {128}> ()
  wide = Cast <to = 6> (weight)
  raised = Add (wide, middle)
  codes = Cast <to = 2> (raised)
  y = ConvInteger <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
                   group: int = @group> (q, codes, zero_code, weight_zero)
}
"""

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

_SIGMOID = """
sigmoid (x) => (y)
{
  one = Constant <value_float = 1.0> ()
  negative = Neg (x)
  grown = matte.exp (negative)
  sum = Add (grown, one)
  y = Div (one, sum)
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

_MASK_TILES = """
mask_tiles <width> (mask) => (tiles)
{
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  plane = Constant <value_int = 0> ()
  none = Constant <value = int64 {-1}> ()
  one = Constant <value = int64 {1}> ()
  pixels = Constant <value_int: int = @width> ()
  pixel_vector = Reshape (pixels, last)
  split = Concat <axis = 0> (last, pixel_vector)
  flags = Cast <to = 9> (mask)
  numbers = Cast <to = 7> (flags)
  rows = Reshape (numbers, split)
  active = ReduceMax <keepdims = 0> (rows, last)
  upto = CumSum (active, plane)
  slot = Sub (upto, one)
  is_active = Cast <to = 9> (active)
  slots = Where (is_active, slot, none)
  found = NonZero (is_active)
  places = Reshape (found, last)
  count = ReduceSum <keepdims = 1> (active, first)
  length = Shape (active)
  missing = Sub (length, count)
  amounts = Concat <axis = 0> (first, missing)
  filled = Pad (places, amounts)
  joined = Concat <axis = 0> (count, filled, slots)
  tiles = Cast <to = 6> (joined)
}
"""

_GATHER_TILES = """
gather_tiles <width> (x, tiles) => (y)
{
  first = Constant <value_ints = [0]> ()
  second = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  start = Constant <value_int = 0> ()
  step = Constant <value_int = 1> ()
  pixels = Constant <value_int: int = @width> ()
  pixel_vector = Reshape (pixels, last)
  lines = Transpose <perm = [0, 2, 3, 1]> (x)
  channels = Shape <start = 3, end = 4> (lines)
  split = Concat <axis = 0> (last, pixel_vector, channels)
  rows = Reshape (lines, split)
  length_vector = Shape <start = 0, end = 1> (rows)
  end = Add (length_vector, second)
  entries = Slice (tiles, second, end)
  kept = Gather <axis = 0> (rows, entries)
  count_vector = Slice (tiles, first, second)
  count = Cast <to = 7> (count_vector)
  length = Squeeze (length_vector)
  numbers = Range (start, length, step)
  is_listed = Less (numbers, count)
  shape = Constant <value_ints = [-1, 1, 1]> ()
  listed = Reshape (is_listed, shape)
  nothing = Constant <value_float = 0.0> ()
  zero = CastLike (nothing, kept)
  chosen = Where (listed, kept, zero)
  compact = Transpose <perm = [2, 0, 1]> (chosen)
  y = Unsqueeze (compact, first)
}
"""

_SCATTER_TILES = """
scatter_tiles (values, tiles, base) => (y)
{
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  second = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  none = Constant <value = int32 {0}> ()
  shape = Constant <value_ints = [-1, 1, 1]> ()
  squeezed = Squeeze (values, first)
  rows = Transpose <perm = [1, 2, 0]> (squeezed)
  count = Shape <start = 0, end = 1> (rows)
  start = Add (count, second)
  slots = Slice (tiles, start, end)
  is_active = GreaterOrEqual (slots, none)
  known = Max (slots, none)
  spread = Gather <axis = 0> (rows, known)
  nothing = Constant <value_float = 0.0> ()
  zero = CastLike (nothing, spread)
  active = Reshape (is_active, shape)
  added = Where (active, spread, zero)
  lines = Transpose <perm = [0, 2, 3, 1]> (base)
  size = Shape (lines)
  image = Reshape (added, size)
  sum = Add (lines, image)
  y = Transpose <perm = [0, 3, 1, 2]> (sum)
}
"""

FUNCTIONS = {
    "unpack_bits": _UNPACK_BITS,
    "pack_bits": _PACK_BITS,
    "pack_signs": _PACK_SIGNS,
    "pack_units": _PACK_UNITS,
    "binary_conv2d": _BINARY_CONV2D,
    "binary_depthwise_conv2d": _BINARY_DEPTHWISE_CONV2D,
    "quantize": _QUANTIZE,
    "dequantize": _DEQUANTIZE,
    "quantized_conv2d": _QUANTIZED_CONV2D,
    "multiply_add": _MULTIPLY_ADD,
    "exp_polynomial": _exp_polynomial(),
    "exp_reduced": _EXP_REDUCED,
    "exp": _EXP,
    "sigmoid": _SIGMOID,
    "tanh": _TANH,
    "plane_mean": _PLANE_MEAN,
    "resize_bilinear": _RESIZE_BILINEAR,
    "mask_tiles": _MASK_TILES,
    "gather_tiles": _GATHER_TILES,
    "scatter_tiles": _SCATTER_TILES,
}
"""Body of each function in ONNX's text form. Weights of `quantized_conv2d` are INT8 or INT4; they are raised to
unsigned codes because x86 kernels for unsigned-by-unsigned products never saturate."""

NEEDS = {
    "pack_signs": ("pack_bits",),
    "pack_units": ("pack_bits",),
    "binary_conv2d": ("unpack_bits",),
    "binary_depthwise_conv2d": ("unpack_bits",),
    "exp_polynomial": ("multiply_add",),
    "exp_reduced": ("multiply_add",),
    "exp": ("exp_reduced", "exp_polynomial", "multiply_add"),
    "sigmoid": ("exp",),
    "tanh": ("exp_reduced", "exp_polynomial", "multiply_add"),
    "resize_bilinear": ("multiply_add",),
}
"""Functions that a function calls; they stand before it in `FUNCTIONS`."""


def closure(names: list[str]) -> list[str]:
    """The functions in `names` and those they call, in the order of `FUNCTIONS`."""
    wanted = set(names)
    for name in reversed(FUNCTIONS):
        if name in wanted:
            wanted.update(NEEDS.get(name, ()))
    return [name for name in FUNCTIONS if name in wanted]


def source(name: str) -> str:
    """The text of one function with its header, for `onnx.parser.parse_function`."""
    return f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {VERSION}]>{FUNCTIONS[name]}'
