"""Register tiles: how many outputs a core computes at once, and the schedule that makes it so.

A tile is `pixels` neighbouring pixels by `vectors` vectors of `lanes` output channels, held in registers while the
window's words go by. Each word of a pixel is broadcast once for all vectors and each weight vector is loaded once
for all pixels, so that a tile of p x v vectors loads (p + v) / (p * v) operands per vector operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm.target import Target, codegen

from mattecompress.backends.tvm.kernels.intrinsics import instruction_set

Schedule = Any
MOST_PIXELS, MOST_VECTORS = 16, 8
REST = 2
"""Registers for intermediate results, beside those for sums, weights and words."""
STACK_BYTES = 1024
"""TVM puts smaller buffers of scope `global` on the stack, where LLVM turns them into registers."""


@dataclass(frozen=True)
class Registers:
    """The vector registers of a processor: bytes of one, and how many."""

    bytes: int
    count: int

    @classmethod
    def of(cls, target: Target) -> "Registers":
        """The registers of a target of kind `llvm`."""
        family = instruction_set(target)
        if family == "x86":
            if codegen.target_has_features("avx512bw", target):
                return cls(64, 32)
            return cls(32 if codegen.target_has_features("avx2", target) else 16, 16)
        return cls(16, 16 if family == "arm" else 32)


@dataclass(frozen=True)
class Tile:
    """A register tile; `vectors * lanes` divides a group's outputs and `pixels` divides a row.

    steps: how many steps of the innermost reduction loops are unrolled at most.
    """

    lanes: int
    vectors: int
    pixels: int
    steps: int = 8

    @property
    def numbers(self) -> list[int]:
        """The tile as an attribute of a block: `Tile(*numbers)`."""
        return [self.lanes, self.vectors, self.pixels, self.steps]

    @property
    def outputs(self) -> int:
        """Output channels of a tile."""
        return self.lanes * self.vectors


def lanes_of(outputs: int, unit: int, registers: Registers) -> int:
    """Lanes of `unit` bytes in a vector: a power of two that divides `outputs` and fits a register."""
    return gcd(outputs, registers.bytes // unit)


def choose_tile(outputs: int, pixels: int, unit: int, registers: Registers, multiple: int = 1) -> Tile:
    """The tile that loads least per operation, of those whose accumulators fit the registers.

    Args:
        outputs: output channels of a group.
        pixels: outputs in a row.
        unit: bytes of an accumulator's lane.
        registers: of the target.
        multiple: of which the tile's output channels are one, a power of two that divides `outputs`.
    """
    lanes = lanes_of(outputs, unit, registers)
    candidates = [
        Tile(lanes, vectors, width)
        for vectors in range(1, MOST_VECTORS + 1)
        for width in range(1, MOST_PIXELS + 1)
        if outputs // lanes % vectors == 0
        and vectors * lanes % multiple == 0
        and pixels % width == 0
        and (vectors + width == 2 or (vectors + 1) * (width + 1) + REST - 1 <= registers.count)
        and vectors * width * lanes * unit < STACK_BYTES
    ]
    return min(candidates, key=lambda tile: (loads_per_operation(tile), tile.vectors))


def loads_per_operation(tile: Tile) -> float:
    """Operands loaded for each vector operation of a tile."""
    return (tile.pixels + tile.vectors) / (tile.pixels * tile.vectors)


def schedule_tiles(
    schedule: Schedule,
    accumulators: Sequence[str],
    result: str,
    tile: Tile,
    packed: bool = False,
    abreast: int = 1,
) -> None:
    """Compute `result` and what follows it tile by tile, each accumulator in registers.

    Args:
        schedule: of a function whose blocks over (N, OH, OW, O) end in `result` and its epilogue.
        accumulators: reduction blocks, each read by the next inside the next one's reduction loops.
        result: name of the block that turns the last accumulator into the kernel's own output.
        tile: the register tile.
        packed: eight output channels are one element of `result`.
        abreast: how many vectors the epilogue computes at once, where that divides those of the tile.
    """
    owner = inline_epilogue(schedule, schedule.get_sblock(result))
    n, y, x, o = schedule.get_loops(owner)
    x_outer, x_inner = schedule.split(x, [None, tile.pixels])
    lanes = gcd(tile.vectors, abreast) * tile.lanes
    o_outer, *inner = schedule.split(
        o, [None, tile.outputs // 8] if packed else [None, tile.outputs // lanes, lanes]
    )
    schedule.reorder(n, y, x_outer, o_outer, x_inner, *inner)
    place, reductions = o_outer, {}
    for name in reversed(accumulators):
        reductions[name] = _accumulate_at(schedule, schedule.get_sblock(name), place, tile)
        place = reductions[name][-1]
    for name, loops in reductions.items():
        schedule.decompose_reduction(schedule.get_sblock(name), loops[0])
    if not packed:
        schedule.vectorize(inner.pop())
    for loop in (x_inner, *inner):
        schedule.unroll(loop)


def inline_epilogue(schedule: Schedule, result: Any) -> Any:
    """Inline `result` and everything that the last block reads besides into that; give the block left to tile.

    That is `result` itself where the blocks after it do not end in one block over the same outputs.
    """
    before = _ancestors(schedule, result)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    *inlined, last = [
        block
        for block in blocks
        if schedule.get(block).writes and not any(schedule.get(block).same_as(other) for other in before)
    ]
    if not _same_outputs(schedule, last, result):
        return result
    if not all(_same_outputs(schedule, block, result, spread=True) for block in inlined):
        return result
    if not all(schedule.get_consumers(block) for block in inlined):
        return result
    for block in inlined:
        schedule.compute_inline(block)
    return last


def _ancestors(schedule: Schedule, block: Any) -> list[Any]:
    """The blocks that a block is computed from."""
    found: list[Any] = []
    for producer in schedule.get_producers(block):
        found += [schedule.get(producer), *_ancestors(schedule, producer)]
    return found


def _same_outputs(schedule: Schedule, block: Any, result: Any, spread: bool = False) -> bool:
    """Whether a block has the result's outputs; or one for several of them, where it may be `spread` over them."""
    extents = [
        [int(schedule.get(loop).extent) for loop in schedule.get_loops(each)] for each in (block, result)
    ]
    spatial = all(var.iter_type == 0 for var in schedule.get(block).iter_vars)
    if len(extents[0]) != len(extents[1]):
        return False
    return spatial and all(own == other or (spread and own == 1) for own, other in zip(*extents, strict=True))


def _accumulate_at(schedule: Schedule, block: Any, place: Any, tile: Tile) -> list[Any]:
    """Move `block` under the loop `place`, reductions outermost, and give those."""
    schedule.compute_at(block, place, preserve_unit_loops=True)
    variables = list(schedule.get(block).iter_vars)
    loops = schedule.get_loops(block)[-len(variables) :]
    reductions = [loop for loop, variable in zip(loops, variables, strict=True) if variable.iter_type == 2]
    pixel, outputs = loops[2:4]
    vector, lane = schedule.split(outputs, [tile.vectors, tile.lanes])
    schedule.reorder(*reductions, pixel, vector, lane)
    schedule.vectorize(lane)
    schedule.unroll(vector)
    schedule.unroll(pixel)
    steps = 1
    for loop in reversed(reductions[1:]):
        steps *= int(schedule.get(loop).extent)
        if steps > tile.steps:
            break
        schedule.unroll(loop)
    return reductions
