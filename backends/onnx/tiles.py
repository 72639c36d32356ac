"""Lists of active tiles, and the way into and out of them, as ONNX local functions; see `mattecompress.ops.masked`."""

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

_SPREAD_TILES = """
spread_tiles <size> (values, tiles) => (y)
{
  nothing = Constant <value_float = 0.0> ()
  zero = CastLike (nothing, values)
  extents = Constant <value_ints: ints = @size> ()
  channels = Shape <start = 1, end = 2> (values)
  lengths = Shape <start = 2, end = 4> (values)
  pixels = ReduceProd <keepdims = 1> (lengths)
  area = ReduceProd <keepdims = 1> (extents)
  batch = Div (pixels, area)
  shape = Concat <axis = 0> (batch, channels, extents)
  base = Expand (zero, shape)
  y = matte.scatter_tiles (values, tiles, base)
}
"""

FUNCTIONS = {
    "mask_tiles": _MASK_TILES,
    "gather_tiles": _GATHER_TILES,
    "scatter_tiles": _SCATTER_TILES,
    "spread_tiles": _SPREAD_TILES,
}
"""Body of each function in ONNX's text form."""

NEEDS = {"spread_tiles": ("scatter_tiles",)}
