"""Batches of a unit's inputs and targets, drawn from what the float and the quantized prefix hold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mattecompress.reconstruction.prefix import Place, Prefix
from mattecompress.reconstruction.store import Value

Inputs = Literal["float", "quantized", "mixed"]
"""Where a unit's inputs come from while it learns: one of the prefixes, or element by element from either."""


@dataclass(frozen=True)
class Batch:
    """Values with the frames along axis 0; `shared` inputs, such as sizes, are the same on each frame."""

    inputs: list[Value]
    targets: list[Value]


class Samples:
    """Frames for one unit.

    position: the unit's place in both prefixes.
    keep: with mixed inputs, the probability that an element comes from the quantized prefix.
    """

    def __init__(
        self,
        exact: Prefix,
        rounded: Prefix,
        position: int,
        inputs: Inputs,
        keep: float,
        generator: torch.Generator,
    ) -> None:
        self.exact, self.rounded, self.position = exact, rounded, position
        self.kind, self.keep, self.generator = inputs, keep, generator
        groups: dict[object, list[Place]] = {}
        for place in exact.feed.places:
            groups.setdefault(exact.feed.sizes(place[0]), []).append(place)
        self.groups = list(groups.values())

    def draw(self, count: int) -> list[Batch]:
        """`count` frames of one size at random, with repetition, each a batch of its own."""
        sizes = torch.tensor([len(group) for group in self.groups], dtype=torch.float32)
        group = self.groups[int(torch.multinomial(sizes, 1, generator=self.generator))]
        chosen = torch.randint(len(group), (count,), generator=self.generator).tolist()
        return [self.one(group[index]) for index in chosen]

    def fixed(self, count: int) -> list[Batch]:
        """Up to `count` frames of one size, evenly over all, as the stage's prefix has them; nothing is drawn."""
        group = self.groups[0]
        step = max(1, len(group) // count)
        return [self.one(place, mix=False) for place in group[::step][:count]]

    def ends(self) -> tuple[Batch, Batch]:
        """The first and the last frame of one size."""
        return self.one(self.groups[0][0]), self.one(self.groups[0][-1])

    def one(self, place: Place, mix: bool = True) -> Batch:
        """One frame; mixed inputs are mixed on request, else quantized."""
        unit = self.exact.units[self.position]
        targets = self.exact.outputs(unit, place)
        if self.kind == "float":
            return Batch(self.exact.inputs(unit, place), targets)
        rounded = self.rounded.inputs(self.rounded.units[self.position], place)
        if self.kind == "quantized" or not mix:
            return Batch(rounded, targets)
        pairs = zip(rounded, self.exact.inputs(unit, place), strict=True)
        return Batch([self._mix(*pair) for pair in pairs], targets)

    def _mix(self, rounded: Value, exact: Value) -> Value:
        if not (isinstance(rounded, Tensor) and isinstance(exact, Tensor) and rounded.is_floating_point()):
            return rounded
        return torch.lerp(exact, rounded, drawn(rounded.shape, self.keep, self.generator))


def drawn(shape: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """Float32, 1 with a probability, to the nearest 256th, else 0. One random number serves eight elements."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    return words.view(torch.uint8)[:count].reshape(tuple(shape)).float().lt_(round(256 * share))


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches along axis 0."""
    return Batch(
        [_cat(values) for values in zip(*(batch.inputs for batch in batches), strict=True)],
        [_cat(values) for values in zip(*(batch.targets for batch in batches), strict=True)],
    )


def _cat(values: Sequence[Value]) -> Value:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return torch.cat(tensors) if tensors else values[0]


@torch.no_grad()
def takes_batches(module: Callable[..., tuple[Value, ...]], one: Batch, other: Batch) -> bool:
    """Whether a module yields for two frames together what it yields for each; programs are captured on one frame."""
    try:
        together = module(*joined([one, other]).inputs)
        apart = [module(*one.inputs), module(*other.inputs)]
        expected = [_cat(values) for values in zip(*apart, strict=True)]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return all(_close(*pair) for pair in zip(together, expected, strict=True))


def _close(found: Value, expected: Value) -> bool:
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return bool(found == expected)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
