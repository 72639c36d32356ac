"""The blocks of a fused function, sorted by what a schedule does with them."""

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir
from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compute.resize import KEPT, ROW
from mattecompress.backends.tvm.schedules.pieces import condition_cuts, mark, serial_pieces, vector_pieces
from mattecompress.backends.tvm.targets import Target

GATHER = "gather"


class RefusalError(Exception):
    """A schedule rule does not fit a function; the message says why."""


@dataclass(frozen=True)
class Stages:
    """One reduction, its optional input gathering before it and its one epilogue block after it."""

    gather: Any | None
    main: Any
    epilogue: Any


def element_bits(schedule: Schedule) -> int:
    """Bits of the elements that a function computes with: 16 where some tensor is float16, else 32."""
    for block in child_blocks(schedule):
        regions = [*schedule.get(block).reads, *schedule.get(block).writes]
        if any(str(region.source.ty.dtype) == "float16" for region in regions):
            return 16
    return 32


def lanes_of(schedule: Schedule, target: Target) -> int:
    """Lanes of a vector register for the elements of a function."""
    return target.lanes(element_bits(schedule))


def child_blocks(schedule: Schedule) -> list[Any]:
    """The blocks of a function in order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def family(schedule: Schedule, block: Any) -> str:
    """The family that a block says it belongs to; empty for most."""
    return str(schedule.get(block).annotations.get("family", ""))


def divide(schedule: Schedule, wanted: str) -> Stages:
    """Inline everything around the one block of a family into its gathering and its epilogue.

    Raises:
        RefusalError: the function has no such block, or several.
    """
    blocks = child_blocks(schedule)
    places = [place for place, block in enumerate(blocks) if family(schedule, block) == wanted]
    if len(places) != 1:
        raise RefusalError(f"{len(places)} blocks of family {wanted}")
    (at,) = places
    main = blocks[at]
    before, after = blocks[:at], blocks[at + 1 :]
    gathers = [block for block in before if schedule.get(block).name_hint.startswith(GATHER)]
    if len(gathers) > 1:
        raise RefusalError("two gathered inputs")
    inline(schedule, [block for block in before + after[:-1] if block not in gathers])
    epilogue = after[-1] if after else schedule.cache_write(main, 0, "local")
    return Stages(gathers[0] if gathers else None, main, epilogue)


def inline(schedule: Schedule, blocks: list[Any]) -> None:
    """Inline blocks into their readers, but those that are computed a row at a time and not for the rows of others."""
    for block in blocks:
        if KEPT not in schedule.get(block).annotations or _feeds_rows(schedule, block):
            schedule.compute_inline(block)


def _feeds_rows(schedule: Schedule, block: Any) -> bool:
    """Whether a row of a later resize is computed from a block; which rows it reads only a table knows."""
    readers = schedule.get_consumers(block)
    rows = (str(schedule.get(reader).annotations.get(KEPT, "")) == ROW for reader in readers)
    return any(rows) or any(_feeds_rows(schedule, reader) for reader in readers)


def place_rows(schedule: Schedule, loop: Any, lanes: int) -> None:
    """Compute each kept row inside `loop`, a loop over rows, vectorised along channels."""
    for block in reversed(child_blocks(schedule)):
        if KEPT not in schedule.get(block).annotations:
            continue
        contiguous, cuts = is_contiguous(schedule.get(block)), condition_cuts(schedule.get(block), 3)
        schedule.compute_at(block, loop, preserve_unit_loops=True)
        column, channel = schedule.get_loops(block)[-2:]
        if contiguous:
            channel = schedule.fuse(column, channel)
        mark(schedule, channel, vector_pieces(int(schedule.get(channel).extent), lanes, cuts))


def is_contiguous(block: Any) -> bool:
    """Whether columns and channels of what is read follow each other in memory as in what is written."""
    *_, column, channel = (iterator.var for iterator in block.iter_vars)
    (written,) = block.writes
    shape = [int(size) for size in written.source.ty.shape[2:]]
    elsewhere: list[Any] = []

    def visit(load: Any) -> None:
        *_, at_column, at_channel = load.indices if len(load.indices) == 4 else (column, channel)
        same = at_column.same_as(column) and at_channel.same_as(channel)
        if not same or (len(load.indices) == 4 and [int(size) for size in load.source.ty.shape[2:]] != shape):
            elsewhere.append(load)

    tvm_ffi.structural_walk(block.body, (ir.TensorLoad, visit))
    return not elsewhere


def schedule_gather(schedule: Schedule, gather: Any, loop: Any, lanes: int) -> None:
    """Compute the gathering inside `loop`, cut where its conditions change, vectorised along channels."""
    cuts = [condition_cuts(schedule.get(gather), axis) for axis in (2, 3)]
    schedule.compute_at(gather, loop, preserve_unit_loops=True)
    columns, channels = schedule.get_loops(gather)[-2:]
    whole = int(schedule.get(gather).iter_vars[2].dom.extent) == int(schedule.get(columns).extent)
    if whole:
        mark(schedule, columns, serial_pieces(int(schedule.get(columns).extent), cuts[0]))
    mark(schedule, channels, vector_pieces(int(schedule.get(channels).extent), lanes, cuts[1]))
    place_rows(schedule, schedule.get_loops(gather)[-3], lanes)


def schedule_planar_gather(schedule: Schedule, gather: Any, loop: Any, lanes: int) -> None:
    """Compute the gathering of few channels inside `loop` plane by plane in each row, vectorised along columns."""
    cuts = condition_cuts(schedule.get(gather), 2)
    schedule.compute_at(gather, loop, preserve_unit_loops=True)
    columns, channels = schedule.get_loops(gather)[-2:]
    schedule.reorder(channels, columns)
    mark(schedule, columns, vector_pieces(int(schedule.get(columns).extent), lanes, cuts))
    schedule.unroll(channels)
    schedule.transform_layout(gather, ("write", 0), lambda n, i, j, c: (n, i, c, j))
    place_rows(schedule, schedule.get_loops(gather)[-3], lanes)


def load_elements(schedule: Schedule, block: Any, operand: int, loop: Any) -> None:
    """Load neighbouring channels of every pixel of an operand, inside `loop`, as one vector for its elements."""
    copy = schedule.cache_read(block, operand, "local")
    schedule.compute_at(copy, loop, preserve_unit_loops=True)
    *_, row, pixel, channel = schedule.get_loops(copy)
    schedule.unroll(row)
    schedule.unroll(pixel)
    schedule.vectorize(channel)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [value for value in range(1, number + 1) if number % value == 0]
