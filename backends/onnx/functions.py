"""The `matte::` operations as ONNX local functions: standard operators only, so that any ONNX runtime runs them.

Their attributes are those of the operations in `mattecompress.ops`, with ONNX's spelling of strides, pads,
dilations and group. A packed tensor is unpacked to -1, 0 and +1 and convolved in float32, which is exact: the sums
stay far below 2**24.
"""

from mattecompress.backends.onnx import reproducible, routing, tiles

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

_PACK_PLANE = """
pack_plane <plane, group, word> (x) => (bits)
{
  low = Constant <value_float = 0.0> ()
  high = Constant <value_float = 1.0> ()
  levels = Constant <value_float = 3.0> ()
  one = Constant <value = uint8 {1}> ()
  number = Constant <value_int: int = @plane> ()
  shift = Cast <to = 2> (number)
  clipped = Clip (x, low, high)
  steps = Mul (clipped, levels)
  whole = Round (steps)
  codes = Cast <to = 2> (whole)
  shifted = BitShift <direction = "RIGHT"> (codes, shift)
  digits = BitwiseAnd (shifted, one)
  flags = Cast <to = 9> (digits)
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

FUNCTIONS = {
    "unpack_bits": _UNPACK_BITS,
    "pack_bits": _PACK_BITS,
    "pack_signs": _PACK_SIGNS,
    "pack_units": _PACK_UNITS,
    "pack_plane": _PACK_PLANE,
    "binary_conv2d": _BINARY_CONV2D,
    "binary_depthwise_conv2d": _BINARY_DEPTHWISE_CONV2D,
    "quantize": _QUANTIZE,
    "dequantize": _DEQUANTIZE,
    "quantized_conv2d": _QUANTIZED_CONV2D,
    **reproducible.FUNCTIONS,
    **routing.FUNCTIONS,
    **tiles.FUNCTIONS,
}
"""Body of each function in ONNX's text form. Weights of `quantized_conv2d` are INT8 or INT4; they are raised to
unsigned codes because x86 kernels for unsigned-by-unsigned products never saturate."""

NEEDS = {
    "pack_signs": ("pack_bits",),
    "pack_units": ("pack_bits",),
    "pack_plane": ("pack_bits",),
    "binary_conv2d": ("unpack_bits",),
    "binary_depthwise_conv2d": ("unpack_bits",),
    **reproducible.NEEDS,
    **tiles.NEEDS,
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
