"""Schedule of sums and maxima over windows, rows or channels: lanes along channels, partial results in registers."""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.pooling import POOLING_FAMILY
from mattecompress.backends.tvm.schedules.convolution import Packing
from mattecompress.backends.tvm.schedules.pieces import condition_cuts, mark, vector_pieces, widths
from mattecompress.backends.tvm.schedules.stages import (
    RefusalError,
    child_blocks,
    divisors,
    family,
    inline,
    lanes_of,
)
from mattecompress.backends.tvm.targets import Target

VECTORS = 8


def schedule_pooling(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function whose reductions are all of the pooling family.

    Raises:
        RefusalError: it has none.
    """
    blocks = child_blocks(s)
    pools = [block for block in blocks if family(s, block) == POOLING_FAMILY]
    if not pools:
        raise RefusalError("no pooling")
    last = blocks[-1]
    inline(s, [block for block in blocks[:-1] if block not in pools])
    for pool in pools:
        _schedule_pool(s, pool, target)
    if last not in pools:
        _vectorize_channels(s, last, target)
    return []


def _schedule_pool(s: Schedule, pool: Any, target: Target) -> None:
    copy = s.cache_write(pool, 0, "local")
    loops = s.get_loops(pool)
    spatial, reduced = loops[:4], loops[4:]
    channels = int(s.get(spatial[3]).extent)
    tile = max(size for size in divisors(channels) if len(widths(size, lanes_of(s, target))) <= VECTORS)
    outer, lanes = s.split(spatial[3], [None, tile])
    s.reorder(*spatial[:3], outer, *reduced, lanes)
    s.reverse_compute_at(copy, outer, preserve_unit_loops=True)
    pieces = vector_pieces(tile, lanes_of(s, target))
    mark(s, lanes, pieces)
    s.decompose_reduction(pool, reduced[0])
    mark(s, s.get_loops(copy)[-1], pieces)


def _vectorize_channels(s: Schedule, block: Any, target: Target) -> None:
    lanes = s.get_loops(block)[-1]
    cuts = condition_cuts(s.get(block), 3)
    mark(s, lanes, vector_pieces(int(s.get(lanes).extent), lanes_of(s, target), cuts))
