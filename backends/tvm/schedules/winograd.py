"""Schedule of Winograd convolutions: a strip of tiles at a time, every stage in a buffer that stays close.

for each row of tiles: gather its input
  for each strip of tiles: the vertical input transform
    for each row of the transformed patch: the horizontal input transform, products, horizontal output transform
    the vertical output transform and the epilogue
"""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.winograd import PATCH, TILE, WINOGRAD_FAMILY
from mattecompress.backends.tvm.schedules.convolution import (
    NEAR_BYTES,
    Packing,
    choose_tile,
    elements_of,
    pack_weight,
)
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces
from mattecompress.backends.tvm.schedules.stages import (
    GATHER,
    RefusalError,
    child_blocks,
    divisors,
    element_bits,
    family,
    inline,
    load_elements,
    schedule_gather,
)
from mattecompress.backends.tvm.targets import Target

LARGEST_STRIP = 32
Cut = list[tuple[int, int, int]]


def schedule_winograd(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function around a Winograd convolution.

    Raises:
        RefusalError: none in it.
    """
    blocks = child_blocks(s)
    if WINOGRAD_FAMILY not in [family(s, block) for block in blocks]:
        raise RefusalError("no Winograd convolution")
    named = {s.get(block).name_hint: block for block in blocks}
    gather = next((block for name, block in named.items() if name.startswith(GATHER)), None)
    vertical, patches, products = named["vertical"], named["patches"], named["products"]
    partial, result = named["partial"], named["result"]
    after = blocks[blocks.index(result) :]
    before = [block for block in blocks[: blocks.index(vertical)] if block != gather]
    inline(s, before + after[:-1])
    epilogue = after[-1]

    outputs, depth = (
        int(s.get(products).iter_vars[5].dom.extent),
        int(s.get(products).iter_vars[6].dom.extent),
    )
    across = int(s.get(products).iter_vars[4].dom.extent)
    bits = element_bits(s)
    lanes = target.lanes(bits)
    strip = _strip(target, across, depth, outputs, bits // 8)
    tile = choose_tile(target, lanes, 1, strip, outputs)
    packing = pack_weight(s, products, tile.channels)

    n, h, w, o = s.get_loops(epilogue)
    t, hi = s.split(h, [None, TILE])
    uo, ui, wi = s.split(w, [None, strip, TILE])
    s.reorder(n, t, uo, ui, wi, o, hi)
    s.compute_at(partial, uo, preserve_unit_loops=True)
    i = s.get_loops(partial)[-4]
    s.compute_at(products, i, preserve_unit_loops=True)
    s.compute_at(patches, i, preserve_unit_loops=True)
    s.compute_at(vertical, uo, preserve_unit_loops=True)
    if gather is not None:
        schedule_gather(s, gather, t, lanes)
    mark(s, wi, _units(TILE))
    mark(s, o, vector_pieces(outputs, lanes))
    mark(s, hi, _units(TILE))
    _reorder_transform(s, partial, lanes, selected=-3, channel=-1)
    _schedule_products(s, products, tile, lanes, elements_of(target, lanes, depth))
    _reorder_transform(s, patches, lanes, selected=-3, channel=-1)
    _reorder_transform(s, vertical, lanes, selected=-3, channel=-1)
    return [packing]


def _strip(target: Target, across: int, depth: int, outputs: int, size: int) -> int:
    tile_bytes = size * (PATCH * TILE * depth + PATCH * depth + PATCH * outputs + PATCH * TILE * outputs)
    fitting = [
        d for d in divisors(across) if d <= LARGEST_STRIP and d * tile_bytes <= NEAR_BYTES[target.vector_bits]
    ]
    return max(fitting, default=1)


def _units(extent: int) -> Cut:
    return [(position, 1, 1) for position in range(extent)]


def _reorder_transform(s: Schedule, block: Any, lanes: int, selected: int, channel: int) -> None:
    """Lanes along channels; inside, the rows of the transform one after the other, which share their loads."""
    loops = s.get_loops(block)
    s.reorder(loops[-2], loops[channel], loops[selected])
    mark(s, loops[channel], vector_pieces(int(s.get(loops[channel]).extent), lanes))
    mark(s, loops[selected], _units(int(s.get(loops[selected]).extent)))


def _schedule_products(s: Schedule, products: Any, tile: Any, lanes: int, elements: int) -> None:
    copy = s.cache_write(products, 0, "local")
    *_, j, u, o, c = s.get_loops(products)
    uo, ui = s.split(u, [None, tile.columns])
    oo, oi = s.split(o, [None, tile.channels])
    co, ck = s.split(c, [None, elements])
    s.reorder(j, oo, uo, co, ck, ui, oi)
    s.reverse_compute_at(copy, uo, preserve_unit_loops=True)
    if elements > 1:
        load_elements(s, products, 0, co)
    pieces = vector_pieces(tile.channels, lanes)
    mark(s, oi, pieces)
    s.unroll(ck)
    s.unroll(ui)
    initial = s.decompose_reduction(products, co)
    s.unroll(s.get_loops(initial)[-2])
    *_, pixel, lane = s.get_loops(copy)
    s.unroll(pixel)
    mark(s, lane, pieces)
