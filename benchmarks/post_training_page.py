"""The page that the results of post_training.py make."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import render_page, spread

METRICS = ("mad", "mse", "grad", "conn", "dtssd")
ORDER = ("mse", "mse equalized", "brecq", "qdrop", "qdrop equalized", "qdrop+GAC", "ptq4vm")
"""The methods, from the largest error to the smallest in PTQ4VM's tables, each with its equalized form."""
COMPARED = (
    ("mse equalized", "mse"),
    ("brecq", "mse"),
    ("qdrop", "brecq"),
    ("qdrop equalized", "qdrop"),
    ("qdrop+GAC", "qdrop equalized"),
    ("ptq4vm", "qdrop+GAC"),
    ("ptq4vm", "qdrop equalized"),
    ("ptq4vm", "qdrop"),
)
"""Methods and what their MAD is set beside."""


@dataclass(frozen=True)
class Effort:
    """What making a program took: seconds of the processor, and peak memory of its process in MiB."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Row:
    """One program, set beside the float network: metrics on the video, MAD on the composites, what it took.

    size: (height, width). passes: what made the program of the network. machine: the processor it was measured on.
    """

    size: tuple[int, int]
    seed: int
    precision: str
    method: str
    passes: str
    video: dict[str, float]
    composites_mad: float
    seconds: float
    peak_mib: float
    machine: str
    threads: int

    @property
    def key(self) -> tuple[tuple[int, int], int, str, str]:
        """Which program it is of."""
        return self.size, self.seed, self.precision, self.method


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
        threads = ", ".join(str(count) for count in sorted({row.threads for row in self.rows}))
        seeds = str(len(self.rows))
        return [self.precision.upper(), self.method, seeds, *metrics, composites, seconds, threads, peak]

    def against(self, other: "Group", metric: str) -> float | None:
        """A metric of the video as a share of another group's, over the seeds that both have."""
        mine, theirs = ({row.seed: row.video[metric] for row in group.rows} for group in (self, other))
        shared = mine.keys() & theirs.keys()
        return sum(mine[seed] for seed in shared) / sum(theirs[seed] for seed in shared) if shared else None


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """A table for each size, and what they say of the paper's order, as Markdown."""
    groups = group_rows(rows)
    sizes = sorted({group.size for group in groups})
    render_page(
        path,
        "post_training.md.jinja",
        tables={size: [group.cells for group in groups if group.size == size] for size in sizes},
        order=list(order_lines(groups)),
        machines=sorted({row.machine for row in rows}),
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
    """How methods compare in MAD, and what flow does to dtSSD."""
    by_key = {(group.size, group.precision, group.method): group for group in groups}
    for size, precision in dict.fromkeys((group.size, group.precision) for group in groups):
        for pair in COMPARED:
            group, other = (by_key.get((size, precision, method)) for method in pair)
            if group and other:
                yield from _comparison(group, other)
        group, other = (by_key.get((size, precision, method)) for method in ("ptq4vm", "qdrop+GAC"))
        share = group.against(other, "dtssd") if group and other else None
        if group and share is not None:
            yield f"{_place(group)}: the flow term changes dtSSD by {share - 1:+.1%}."


def _comparison(group: Group, other: Group) -> Iterator[str]:
    share = group.against(other, "mad")
    if share is not None:
        yield f"{_place(group)}: MAD of `{group.method}` {_difference(share)} `{other.method}`."


def _place(group: Group) -> str:
    return f"{group.precision.upper()} at {group.size[0]}x{group.size[1]}"


def _difference(share: float) -> str:
    return "the same as" if share == 1 else f"{abs(share - 1):.1%} {'below' if share < 1 else 'above'}"
