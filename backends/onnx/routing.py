"""Routed tokens as ONNX local functions; see `mattecompress.ops.tokens`."""

_CHOOSE_TOKENS = """
choose_tokens <limit> (margin) => (places)
{
  last = Constant <value_ints = [-1]> ()
  nothing = Constant <value_float = 0.0> ()
  none = Constant <value = int64 {-1}> ()
  room = Constant <value_int: int = @limit> ()
  rooms = Reshape (room, last)
  largest, index = TopK <axis = 1, largest = 1, sorted = 1> (margin, rooms)
  zero = CastLike (nothing, margin)
  is_chosen = Greater (largest, zero)
  chosen = Where (is_chosen, index, none)
  places = Cast <to = 6> (chosen)
}
"""

_GATHER_TOKENS = """
gather_tokens (x, places) => (rows)
{
  last = Constant <value_ints = [-1]> ()
  none = Constant <value = int64 {0}> ()
  nothing = Constant <value_float = 0.0> ()
  index = Cast <to = 7> (places)
  known = Max (index, none)
  entries = Unsqueeze (known, last)
  there = GatherND <batch_dims = 1> (x, entries)
  is_place = GreaterOrEqual (index, none)
  is_row = Unsqueeze (is_place, last)
  zero = CastLike (nothing, x)
  rows = Where (is_row, there, zero)
}
"""

_SCATTER_TOKENS = """
scatter_tokens (rows, places, base) => (y)
{
  first = Constant <value_ints = [0]> ()
  second = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  none = Constant <value = int64 {0}> ()
  amounts = Constant <value_ints = [0, 0, 0, 0, 1, 0]> ()
  nothing = Constant <value_float = 0.0> ()
  zero = CastLike (nothing, base)
  longer = Pad (base, amounts, zero)
  length = Shape <start = 1, end = 2> (base)
  index = Cast <to = 7> (places)
  is_place = GreaterOrEqual (index, none)
  known = Where (is_place, index, length)
  entries = Unsqueeze (known, last)
  size = Shape (rows)
  targets = Expand (entries, size)
  written = ScatterElements <axis = 1> (longer, targets, rows)
  y = Slice (written, first, length, second)
}
"""

FUNCTIONS = {
    "choose_tokens": _CHOOSE_TOKENS,
    "gather_tokens": _GATHER_TOKENS,
    "scatter_tokens": _SCATTER_TOKENS,
}
"""Body of each function in ONNX's text form."""
