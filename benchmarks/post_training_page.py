"""The page that the results of post_training.py make."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import render_page, spread

METRICS = ("mad", "mse", "grad", "conn", "dtssd")
ORDER = ("mse", "mse equalized", "brecq", "qdrop", "qdrop+GAC", "ptq4vm")
"""The methods, from the largest error to the smallest in PTQ4VM's tables."""


@dataclass(frozen=True)
class Effort:
    """What making a program took: seconds of the processor, and peak memory of its process in MiB."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Row:
    """One program, set beside the float network: metrics on the video, MAD on the composites, what it took.

    size: (height, width).
    """

    size: tuple[int, int]
    seed: int
    precision: str
    method: str
    video: dict[str, float]
    composites_mad: float
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Group:
    """The rows of all seeds of a method, at one size and precision."""

    size: tuple[int, int]
    precision: str
    method: str
    rows: list[Row]

    @property
    def cells(self) -> list[str]:
        """What the table says of them."""
        metrics = [spread([row.video[name] for row in self.rows], digits=2) for name in METRICS]
        composites = spread([row.composites_mad for row in self.rows], digits=2)
        seconds = f"{statistics.mean(row.seconds for row in self.rows):.0f}"
        peak = f"{max(row.peak_mib for row in self.rows):.0f}"
        seeds = str(len(self.rows))
        return [self.precision.upper(), self.method, seeds, *metrics, composites, seconds, peak]

    def mean(self, metric: str) -> float:
        """A metric of the video, over the seeds."""
        return statistics.mean(row.video[metric] for row in self.rows)


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """A table for each size, and what they say of the paper's order, as Markdown."""
    groups = group_rows(rows)
    sizes = sorted({group.size for group in groups})
    render_page(
        path,
        "post_training.md.jinja",
        tables={size: [group.cells for group in groups if group.size == size] for size in sizes},
        order=list(order_lines(groups)),
    )


def group_rows(rows: Sequence[Row]) -> list[Group]:
    """By size, precision from coarse to fine last, and method."""
    keys = sorted(
        {(row.size, row.precision, row.method) for row in rows},
        key=lambda key: (key[0], ("w8a8", "w4a8", "w4a4").index(key[1]), ORDER.index(key[2])),
    )
    return [
        Group(*key, [row for row in rows if (row.size, row.precision, row.method) == key]) for key in keys
    ]


def order_lines(groups: Sequence[Group]) -> Iterator[str]:
    """Whether each method is better than the one before it, and flow's effect on dtSSD."""
    for first, second in pairwise(groups):
        if (first.size, first.precision) == (second.size, second.precision):
            place = f"{second.precision.upper()} at {second.size[0]}x{second.size[1]}"
            gain = 1 - second.mean("mad") / first.mean("mad")
            holds = f"{abs(gain):.0%} {'below' if gain > 0 else 'above'}" if gain else "that of"
            yield f"{place}: MAD of `{second.method}` {holds} `{first.method}`."
    by_key = {(group.size, group.precision, group.method): group for group in groups}
    for (size, precision, method), group in by_key.items():
        without = by_key.get((size, precision, "qdrop+GAC"))
        if method == "ptq4vm" and without:
            change = group.mean("dtssd") / without.mean("dtssd") - 1
            yield f"{precision.upper()} at {size[0]}x{size[1]}: the flow term changes dtSSD by {change:+.1%}."
