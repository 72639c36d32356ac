"""Schedule of matrix products: register tiles of rows by columns, constant weights laid out per tile.

for each block of rows: for each tile of columns, each tile of rows: accumulate in registers over k; then the epilogue
"""

from typing import Any

from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.product import LINEAR_FAMILY, PRODUCT_FAMILY
from mattecompress.backends.tvm.schedules.convolution import (
    NEAR_BYTES,
    Packing,
    choose_tile,
    elements_of,
    pack_weight,
)
from mattecompress.backends.tvm.schedules.pieces import mark, vector_pieces
from mattecompress.backends.tvm.schedules.stages import (
    child_blocks,
    divide,
    divisors,
    element_bits,
    family,
    lanes_of,
)
from mattecompress.backends.tvm.targets import Target


def schedule_product(s: Schedule, target: Target) -> list[Packing]:
    """Schedule a fused function around a matrix product.

    Raises:
        RefusalError: no product in it.
    """
    constant = any(family(s, block) == LINEAR_FAMILY for block in child_blocks(s))
    stages = divide(s, LINEAR_FAMILY if constant else PRODUCT_FAMILY)
    block, lanes = s.get(stages.main), lanes_of(s, target)
    rows, columns, depth = (int(v.dom.extent) for v in block.iter_vars[-3:])
    tile = choose_tile(target, lanes, 1, rows, columns)
    packings = [pack_weight(s, stages.main, tile.channels)] if constant else []
    near = max(1, NEAR_BYTES[target.vector_bits] // (depth * element_bits(s) // 8) // tile.columns)
    together = max(count for count in divisors(rows // tile.columns) if count <= near)
    elements = elements_of(target, lanes, depth) if constant else 1

    *batch, i, j, k = s.get_loops(stages.main)
    io, im, ii = s.split(i, [None, together, tile.columns])
    jo, ji = s.split(j, [None, tile.channels])
    ko, ki = s.split(k, [None, elements])
    s.reorder(*batch, io, jo, im, ko, ki, ii, ji)
    s.reverse_compute_at(stages.epilogue, im, preserve_unit_loops=True)
    if elements > 1:
        _load_elements(s, stages.main, ko)
    s.set_scope(stages.main, 0, "local")
    mark(s, ji, vector_pieces(tile.channels, lanes))
    s.unroll(ki)
    s.unroll(ii)
    initial = s.decompose_reduction(stages.main, ko)
    for nest in (initial, stages.epilogue):
        *_, row, column = s.get_loops(nest)
        s.unroll(row)
        if nest is stages.epilogue:
            mark(s, column, vector_pieces(tile.channels, lanes))
    return packings


def _load_elements(s: Schedule, main: Any, place: Any) -> None:
    """Load neighbouring elements of each row as one vector, which then multiply the weights one by one."""
    copy = s.cache_read(main, 0, "local")
    s.compute_at(copy, place, preserve_unit_loops=True)
    *_, row, element = s.get_loops(copy)
    s.unroll(row)
    s.vectorize(element)
