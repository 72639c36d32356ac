"""The page that the results of token_memory.py make."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

from results import render_page

COMPUTED = " (computed)"


@dataclass(frozen=True)
class Measurement:
    """Of one image: seconds of the processor, MiB that the process held before, and at most while it computed."""

    seconds: float
    held: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One program.

    size: (height, width) of the image.
    counted: MiB of activations that its graph keeps alive at most.
    runs: none where there was no memory for it.
    """

    model: str
    size: tuple[int, int]
    name: str
    counted: float
    runs: tuple[Measurement, ...]

    @property
    def place(self) -> str:
        """The size, as it is written."""
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def seconds(self) -> float | None:
        """The median of all runs."""
        return median(run.seconds for run in self.runs) if self.runs else None

    @property
    def duration(self) -> str:
        """The median of all runs, and between which they lie."""
        if self.seconds is None:
            return "not run"
        seconds = [run.seconds for run in self.runs]
        between = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(seconds) > 1 else ""
        return f"{self.seconds:.1f}{between}"

    @property
    def noise(self) -> float:
        """By what share of the least seconds the most are longer; 0 for a single run."""
        seconds = [run.seconds for run in self.runs]
        return max(seconds) / min(seconds) - 1 if seconds else 0.0

    @property
    def above(self) -> float:
        """MiB above what was held before, at most, computed where nothing was run."""
        return max((run.peak - run.held for run in self.runs), default=self.counted)

    def peak(self, held: float) -> float:
        """MiB at most, computed from what a process holds before where nothing was run."""
        return max((run.peak for run in self.runs), default=held + self.counted)


def write_page(path: Path, rows: Sequence[Row], pipelines: Mapping[str, str]) -> None:
    """A table for each size, and how good the count of activations is, as Markdown.

    rows: in order of size. pipelines: by the rows' names.
    """
    by_size = [list(group) for _, group in groupby(rows, key=lambda row: row.size)]
    render_page(
        path,
        "token_memory.md.jinja",
        model=rows[0].model,
        noise=max(row.noise for row in rows),
        pipelines=pipelines,
        tables={group[0].place: table_rows(group) for group in by_size},
        counts=list(count_lines(rows)),
    )


def table_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Name, runs, activations, peak, memory above the start, seconds, with shares of eager's and of sdpa's; of one size."""
    by_name = {row.name: row for row in rows}
    eager, sdpa = by_name.get("eager"), by_name.get("sdpa")
    held = max((run.held for row in rows for run in row.runs), default=0.0)
    return [
        (
            row.name,
            str(len(row.runs)),
            f"{row.counted:.0f}",
            f"{row.peak(held):.0f}{'' if row.runs else COMPUTED}",
            _share(row.peak(held), eager and eager.peak(held)),
            f"{row.above:.0f}{'' if row.runs else COMPUTED}",
            _share(row.above, eager and eager.above),
            row.duration,
            _share(row.seconds, eager and eager.seconds),
            _share(row.seconds, sdpa and sdpa.seconds),
        )
        for row in rows
    ]


def count_lines(rows: Sequence[Row]) -> Iterator[str]:
    """How the activations that are counted compare with what eager was measured to take."""
    for row in rows:
        if row.name == "eager" and row.runs:
            share = row.counted / row.above
            yield f"{row.place}: {row.counted:.0f} MiB of activations, {share:.1%} of the measured {row.above:.0f}."


def _share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.1%}" if value and whole else ""
