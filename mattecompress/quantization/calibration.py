"""Ranges for quantizers: values seen while clips run through a program, and the ends of range that cost least.

A range is judged by mean |x - x_hat|^2.4, the score of BRECQ and QDrop. Candidates are the extremes times a factor:
0.05, 0.10 ... 1.00, then hundredths around the best of these (BRECQ and QDrop try every hundredth). Both ends move
together; then, where there are values on both sides of 0, each end alone, low before high, twice. This stands for
QDrop's two-sided search over every width and zero point.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, fx

from mattecompress.interface import Clip
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.program import Program
from mattecompress.running.feed import Feed
from mattecompress.running.watching import Progress, watch

POWER = 2.4
COARSE = tuple(1 - 0.05 * step for step in range(20))
FINE = tuple(0.01 * step for step in range(-4, 5) if step)
ROUNDS = 2
SAMPLES = 1 << 15

RangeMethod = Literal["mse", "min-max"]


@dataclass
class Observation:
    """What was seen of one tensor: its extremes over all frames, and a sample of its values."""

    low: float = float("inf")
    high: float = float("-inf")
    pieces: list[Tensor] = field(default_factory=list)

    @property
    def samples(self) -> Tensor:
        """Float32, one axis; about `SAMPLES` values, evenly from all frames."""
        return torch.cat(self.pieces)

    def add(self, value: Tensor, count: int, generator: torch.Generator) -> None:
        """Take in the tensor of one frame, `count` values of it at random places.

        Raises:
            FloatingPointError: a value is not finite.
        """
        low, high = (end.item() for end in value.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = value.flatten()
        if flat.numel() > count:
            flat = flat[torch.randint(flat.numel(), (count,), generator=generator)]
        self.pieces.append(flat.float().clone())


class Collects(Protocol):
    """What is kept of a node's values."""

    def add(self, value: Tensor, count: int, generator: torch.Generator) -> None:
        """Take in the value on one frame, some `count` elements of it as they are.

        Raises:
            FloatingPointError: one is not finite.
        """


C = TypeVar("C", bound=Collects)


def collect(
    kind: Callable[[], C],
    samples: int,
    program: Program,
    names: Iterable[str],
    clips: Sequence[Clip],
    seed: int,
    progress: Progress,
) -> dict[str, C]:
    """What the nodes called `names` yield on the clips, as `watch` runs them.

    samples: kept of each node, over all frames. seed: decides which.

    Raises:
        CalibrationError: no clips, clips that do not fit, or a node whose values are not finite.
    """
    feed, seen = Feed(program, clips), {name: kind() for name in names}
    generator = torch.Generator().manual_seed(seed)
    share = -(-samples // len(feed.places))

    def look(node: fx.Node, value: Tensor) -> None:
        if node.name in seen:
            try:
                seen[node.name].add(value, share, generator)
            except FloatingPointError as error:
                raise FloatingPointError(f"%{node.name} holds {error}") from error

    watch(feed, look, progress)
    return seen


def observe(
    program: Program,
    names: Iterable[str],
    clips: Sequence[Clip],
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Observation]:
    """Extremes and samples of the nodes called `names`, as of `collect`."""
    return collect(Observation, SAMPLES, program, names, clips, seed, progress)


def _rounded(values: Tensor, scale: Tensor, zero_point: Tensor, config: QuantizerConfig) -> Tensor:
    """Each row, with its own scale and zero point."""
    scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
    codes = (values / scale).round_().add_(zero_point).clamp_(config.low, config.high)
    return codes.sub_(zero_point).mul_(scale)


class _Search:
    """The factors of both extremes that are best so far for each row of `values`, and their score."""

    def __init__(self, values: Tensor, low: Tensor, high: Tensor, config: QuantizerConfig) -> None:
        self.values, self.low, self.high, self.config = values, low, high, config
        self.peak = torch.maximum(-low, high).clamp_min(torch.finfo(torch.float32).tiny)
        self.below, self.above = torch.ones_like(low), torch.ones_like(high)
        self.score = self.rate(self.below, self.above)

    def rate(self, below: Tensor, above: Tensor) -> Tensor:
        affine = self.config.affine(self.low * below, self.high * above)
        error = _rounded(self.values, *affine, self.config).sub_(self.values).div_(self.peak.unsqueeze(1))
        return error.abs_().pow_(POWER).mean(1)

    def offer(self, below: Tensor, above: Tensor, rows: Tensor) -> None:
        score = self.rate(below, above)
        better = rows & (score < self.score)
        self.below, self.above = (
            torch.where(better, below, self.below),
            torch.where(better, above, self.above),
        )
        self.score = torch.where(better, score, self.score)

    def sweep(self, move_low: bool, move_high: bool, rows: Tensor) -> None:
        """Coarse factors for the ends that move, then fine ones around the best of each row that `rows` tells."""
        below, above = self.below, self.above
        candidates = [torch.full_like(below, factor) for factor in COARSE]
        for factor in candidates:
            self.offer(factor if move_low else below, factor if move_high else above, rows)
        best = self.below if move_low else self.above
        for step in FINE:
            factor = (best + step).clamp(COARSE[-1], 1)
            self.offer(factor if move_low else below, factor if move_high else above, rows)


@torch.no_grad()
def search_range(values: Tensor, low: Tensor, high: Tensor, config: QuantizerConfig) -> tuple[Tensor, Tensor]:
    """The ends of range of least score for each row, by the search at the top of this module.

    values: float32 (rows, n).
    low, high: float32 (rows,), the extremes, which may lie beyond those of `values`.
    """
    search = _Search(values, low.clamp(max=0), high.clamp(min=0), config)
    search.sweep(True, True, torch.ones_like(low, dtype=torch.bool))
    two_sided = low.lt(0) & high.gt(0)
    if not config.symmetric and two_sided.any():
        for _ in range(ROUNDS):
            search.sweep(True, False, two_sided)
            search.sweep(False, True, two_sided)
    return search.low * search.below, search.high * search.above


@torch.no_grad()
def fitted(values: Tensor, low: Tensor, high: Tensor, config: QuantizerConfig) -> Tensor:
    """Each row as a quantizer of its own rounds it, with the range of least score; arguments as of `search_range`."""
    return _rounded(values, *config.affine(*search_range(values, low, high, config)), config)


def fit_weights(quantizer: FakeQuantize, weight: Tensor, method: RangeMethod) -> None:
    """Give a quantizer its scales for `weight`, float32 (O, ...): one for each index of axis 0, or one for all."""
    rows = weight.detach().reshape(1 if quantizer.config.channels is None else len(weight), -1)
    low, high = rows.aminmax(dim=1)
    _fit(quantizer, rows, low, high, method)


def fit_activations(quantizer: FakeQuantize, seen: Observation, method: RangeMethod) -> None:
    """Give a quantizer of one scale its scale and zero point for a tensor that was observed."""
    low, high = torch.tensor([seen.low]), torch.tensor([seen.high])
    _fit(quantizer, seen.samples.unsqueeze(0), low, high, method)


def _fit(quantizer: FakeQuantize, rows: Tensor, low: Tensor, high: Tensor, method: RangeMethod) -> None:
    if method == "mse":
        low, high = search_range(rows, low, high, quantizer.config)
    quantizer.set_affine(*quantizer.config.affine(low, high))
