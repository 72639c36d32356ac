"""Offsets in one block of memory, the arena, for what is in use at known steps; what never meets may share bytes.

Placement is greedy (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, section
4.3): large tensors first, each into the smallest gap that holds it; then what ended up on top is placed earlier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
MENDINGS = 20


@dataclass(frozen=True)
class Lifetime:
    """A number of bytes that is in use from step `first` to step `last`, both included.

    idle: first and last step in between at which nobody needs what is there; none where the first is after the last.
    """

    bytes: int
    first: int
    last: int
    idle: tuple[int, int] | None = None

    def meets(self, other: "Lifetime") -> bool:
        """Whether both are in use at some step."""
        return any(
            first <= last_of_other and first_of_other <= last
            for first, last in self._spans()
            for first_of_other, last_of_other in other._spans()
        )

    def _spans(self) -> list[tuple[int, int]]:
        if self.idle is None or self.idle[0] > self.idle[1]:
            return [(self.first, self.last)]
        return [(self.first, self.idle[0] - 1), (self.idle[1] + 1, self.last)]


def align(size: int) -> int:
    """The next multiple of 64."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def allocate(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """An offset for each lifetime, and the size of the arena.

    Two greedy orders, each mended by placing again what ended up on top, earlier; the smallest arena wins.
    """
    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-lifetimes[i].bytes, lifetimes[i].first, i),
        lambda i: (lifetimes[i].first - lifetimes[i].last, -lifetimes[i].bytes, i),
    )
    least = _least(lifetimes)
    best: tuple[list[int], int] | None = None
    for key in orders:
        order = sorted(range(len(lifetimes)), key=key)
        for _ in range(MENDINGS):
            offsets, total = _place_in_order(lifetimes, order)
            if best is None or total < best[1]:
                best = offsets, total
            if best[1] == least:
                return best
            top = max(order, key=lambda i: offsets[i] + align(lifetimes[i].bytes))
            order.remove(top)
            order.insert(0, top)
    assert best is not None
    return best


def _least(lifetimes: Sequence[Lifetime]) -> int:
    """The bytes in use at the fullest step, below which no plan can be."""
    begins = {lifetime.first for lifetime in lifetimes}
    return max((sum(align(x.bytes) for x in lifetimes if x.first <= t <= x.last) for t in begins), default=0)


def _place_in_order(lifetimes: Sequence[Lifetime], order: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for index in order:
        size = align(lifetimes[index].bytes)
        busy = sorted(
            (offsets[other], align(lifetimes[other].bytes))
            for other in placed
            if lifetimes[other].meets(lifetimes[index])
        )
        offsets[index] = _best_gap(busy, size)
        placed.append(index)
        total = max(total, offsets[index] + size)
    return offsets, total


def _best_gap(busy: Sequence[tuple[int, int]], size: int) -> int:
    """Where `size` bytes fit most tightly between sorted (offset, size) blocks; after them if nowhere."""
    best, best_gap, end = -1, 0, 0
    for offset, length in busy:
        gap = offset - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, offset + length)
    return end if best < 0 else best
