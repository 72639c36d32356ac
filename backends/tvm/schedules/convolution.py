"""Schedule of dense and grouped convolutions: register tiles of pixels by output channels, weights laid out per tile.

for each block of rows: gather its input (padding, joins, resizes) into a buffer
  for each tile of channels, each tile of pixels: accumulate in registers over kh, kw, ci; then the epilogue
"""

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.convolution import CONVOLUTION_FAMILY
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces, widths
from mattecompress.backends.tvm.schedules.stages import (
    divide,
    divisors,
    element_bits,
    lanes_of,
    load_elements,
    schedule_gather,
    schedule_planar_gather,
)
from mattecompress.backends.tvm.targets import Target

LEAST_ELEMENTS = 4
LATENCY = 8  # fused multiply-adds in flight that keep the units busy
LARGEST_BLOCK = 16
NEON_BITS = 128  # NEON multiplies by one element of a register
NEAR_BYTES = {512: 256 << 10, 256: 128 << 10, 128: 64 << 10}


@dataclass(frozen=True)
class Tile:
    """Accumulators of one inner loop: rows x columns pixels by `channels` output channels."""

    rows: int
    columns: int
    channels: int


@dataclass(frozen=True)
class Packing:
    """A weight parameter to lay out anew, (KH,KW,I,O) to (O/tile,KH,KW,I,tile)."""

    parameter: int
    tile: int


def choose_tile(target: Target, lanes: int, rows: int, columns: int, channels: int) -> Tile:
    """The exact tile that costs least per multiply-accumulate in arithmetic and loads."""
    best, best_cost = Tile(1, 1, 1), float("inf")
    for tile_channels in divisors(channels):
        vectors = len(widths(tile_channels, lanes))
        for tile_columns in divisors(columns):
            for tile_rows in divisors(rows):
                pixels = tile_rows * tile_columns
                loaded = pixels if target.vector_bits == NEON_BITS else 1
                if vectors * (pixels + 1) + loaded > target.vector_registers:
                    break
                work = vectors * pixels
                cost = max(work, vectors + pixels / 2, LATENCY) + 0.15 * (vectors + pixels) + 0.2 * tile_rows
                cost /= pixels * tile_channels
                if cost < best_cost:
                    best, best_cost = Tile(tile_rows, tile_columns, tile_channels), cost
    return best


def schedule_convolution(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function around a convolution.

    Raises:
        RefusalError: no convolution in it.
    """
    stages = divide(s, CONVOLUTION_FAMILY)
    block = s.get(stages.main)
    rows, columns, outputs = (int(v.dom.extent) for v in block.iter_vars[1:4])
    depth = int(block.iter_vars[-1].dom.extent)
    grouped = _group_size(block, outputs, depth)
    tile = choose_tile(target, lanes_of(s, target), rows, columns, grouped)
    packing = pack_weight(s, stages.main, tile.channels)
    _order_loops(s, stages, tile, target, rows)
    return [packing]


def pack_weight(s: Schedule, block: Any, tile: int) -> Packing:
    """Let a block read its second operand, a weight (KH,KW,I,O), in tiles of output channels."""
    parameter = _parameter(s, s.get(block).reads[1].source)
    s.transform_layout(block, ("read", 1), lambda kh, kw, i, o: (o // tile, kh, kw, i, o % tile))
    return Packing(parameter, tile)


def _order_loops(s: Schedule, stages: Any, tile: Tile, target: Target, rows: int) -> None:
    n, i, j, o, kh, kw, ci = s.get_loops(stages.main)
    lanes = lanes_of(s, target)
    block_rows = _block_rows(s, stages, tile, target, rows)
    io, im, ii = s.split(i, [None, block_rows // tile.rows, tile.rows])
    jo, ji = s.split(j, [None, tile.columns])
    oo, oi = s.split(o, [None, tile.channels])
    elements = elements_of(target, lanes, int(s.get(ci).extent))
    co, ck = s.split(ci, [None, elements])
    s.reorder(n, io, oo, im, jo, kh, kw, co, ck, ii, ji, oi)
    s.reverse_compute_at(stages.epilogue, jo, preserve_unit_loops=True)
    if elements > 1:
        load_elements(s, stages.main, 0, co)
    if stages.gather is not None:
        depth = int(s.get(stages.gather).iter_vars[3].dom.extent)
        planar = elements == 1 and depth < lanes
        (schedule_planar_gather if planar else schedule_gather)(s, stages.gather, io, lanes)
    s.set_scope(stages.main, 0, "local")
    mark(s, oi, vector_pieces(tile.channels, lanes))
    for loop in (ck, ii, ji):
        s.unroll(loop)
    initial = s.decompose_reduction(stages.main, kh)
    for nest in (initial, stages.epilogue):
        *_, row, column, lane = s.get_loops(nest)
        s.unroll(row)
        s.unroll(column)
        if nest is stages.epilogue:
            mark(s, lane, vector_pieces(tile.channels, lanes))


def elements_of(target: Target, lanes: int, depth: int) -> int:
    """Neighbouring input channels to load as one vector: all lanes of it, or half; 1 where none is to be."""
    if target.vector_bits != NEON_BITS:
        return 1
    return next((count for count in (lanes, lanes // 2) if count >= LEAST_ELEMENTS and depth % count == 0), 1)


def _block_rows(s: Schedule, stages: Any, tile: Tile, target: Target, rows: int) -> int:
    """Rows of output between two gatherings: as many as keep the gathered input close."""
    source = s.get(stages.main).reads[0]
    _, height, width, channels = (int(size) for size in source.source.ty.shape)
    row_bytes = width * channels * element_bits(s) // 8
    stride = max(1, round(height / rows))
    fitting = [
        candidate
        for candidate in divisors(rows)
        if candidate % tile.rows == 0
        and candidate <= LARGEST_BLOCK
        and candidate * stride * row_bytes <= NEAR_BYTES[target.vector_bits]
    ]
    return max(fitting, default=tile.rows)


def _group_size(block: Any, outputs: int, depth: int) -> int:
    """Output channels that share their input channels."""
    source, weight = block.reads[0].source, block.reads[1].source
    inputs = int(source.ty.shape[3])
    return outputs if inputs == int(weight.ty.shape[2]) else outputs * depth // inputs


def _parameter(s: Schedule, source: Any) -> int:
    (place,) = [index for index, value in enumerate(s.mod["main"].params) if value.same_as(source)]
    return place
