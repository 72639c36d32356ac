"""Schedule of depthwise convolutions: lanes along channels, a row of pixels in registers, the window unrolled.

for each tile of channels, each block of rows: gather the input with its padding
  for each tile of pixels: accumulate in registers over kh, kw; then the epilogue
"""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.convolution import DEPTHWISE_FAMILY
from mattecompress.backends.tvm.schedules.convolution import NEAR_BYTES, Packing, Tile
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces, widths
from mattecompress.backends.tvm.schedules.stages import divide, divisors, element_bits, schedule_gather
from mattecompress.backends.tvm.targets import Target

VECTORS = 4


def schedule_depthwise(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function around a depthwise convolution.

    Raises:
        RefusalError: no depthwise convolution in it.
    """
    stages = divide(s, DEPTHWISE_FAMILY)
    extents = [int(v.dom.extent) for v in s.get(stages.main).iter_vars]
    bits = element_bits(s)
    lanes = target.lanes(bits)
    tile = _choose_tile(target, lanes, *extents[1:4])
    block_rows = _block_rows(s, stages.main, tile, target, extents[1], bits // 8)
    n, i, j, c, kh, kw = s.get_loops(stages.main)
    io, ii = s.split(i, [None, block_rows])
    jo, ji = s.split(j, [None, tile.columns])
    co, ci = s.split(c, [None, tile.channels])
    s.reorder(n, co, io, ii, jo, kh, kw, ji, ci)
    s.reverse_compute_at(stages.epilogue, jo, preserve_unit_loops=True)
    if stages.gather is not None:
        schedule_gather(s, stages.gather, io, lanes)
    s.set_scope(stages.main, 0, "local")
    pieces = vector_pieces(tile.channels, lanes)
    mark(s, ci, pieces)
    for loop in (ji, kw):
        s.unroll(loop)
    initial = s.decompose_reduction(stages.main, kh)
    s.unroll(s.get_loops(initial)[-2])
    *_, column, lane = s.get_loops(stages.epilogue)
    s.unroll(column)
    mark(s, lane, pieces)
    return []


def _choose_tile(target: Target, lanes: int, rows: int, columns: int, channels: int) -> Tile:
    best, best_cost = Tile(1, 1, 1), float("inf")
    for tile_channels in divisors(channels):
        vectors = len(widths(tile_channels, lanes))
        for tile_columns in divisors(columns):
            work = vectors * tile_columns
            if work > target.vector_registers * 3 // 4 - 2 or (vectors > VECTORS and tile_channels > 1):
                break
            cost = (max(work, 4) + 0.2 * vectors) / (tile_columns * tile_channels)
            if cost < best_cost:
                best, best_cost = Tile(1, tile_columns, tile_channels), cost
    return best


def _block_rows(s: Schedule, main: Any, tile: Tile, target: Target, rows: int, size: int) -> int:
    _, height, width, _ = (int(extent) for extent in s.get(main).reads[0].source.ty.shape)
    row_bytes = round(height / rows) * width * tile.channels * size
    return max((r for r in divisors(rows) if r * row_bytes <= NEAR_BYTES[target.vector_bits]), default=1)
