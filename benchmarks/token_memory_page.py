"""The page that the results of token_memory.py make."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import render_page

NOT_RUN = "not run"


@dataclass(frozen=True)
class Measurement:
    """Of one image: seconds of the processor, MiB that the process held before, and at most while it computed."""

    seconds: float
    held: float
    peak: float

    @property
    def above(self) -> float:
        """MiB at most above what was held before."""
        return self.peak - self.held


@dataclass(frozen=True)
class Row:
    """One program.

    size: (height, width) of the image.
    counted: MiB of activations that its graph keeps alive at most.
    measured: None where there was no memory for it.
    """

    model: str
    size: tuple[int, int]
    name: str
    counted: float
    measured: Measurement | None

    @property
    def place(self) -> str:
        """The size, as it is written."""
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def above(self) -> float:
        """MiB above what was held before, computed where they are not measured."""
        return self.measured.above if self.measured else self.counted


def write_page(path: Path, rows: Sequence[Row], pipelines: Mapping[str, str]) -> None:
    """A table for each size, how good the count is, and what they say, as Markdown.

    rows: in order of size. pipelines: by the rows' names.
    """
    tables = [SizeTable(list(group)) for _, group in groupby(rows, key=lambda row: row.size)]
    render_page(
        path,
        "token_memory.md.jinja",
        model=rows[0].model,
        pipelines=pipelines,
        tables=tables,
        counts=[line for table in tables for line in table.count_lines()],
        savings=[line for table in tables for line in table.saving_lines()],
    )


class SizeTable:
    """The rows of one size; the others are set beside `eager` and `sdpa`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.name: row for row in rows}
        self.place = rows[0].place
        self.held = max((row.measured.held for row in rows if row.measured), default=0.0)

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Name, activations, peak memory, memory above the start and seconds, with shares of eager's and of sdpa's."""
        return [
            (
                name,
                f"{row.counted:.0f}",
                f"{self._peak(row):.0f}" + ("" if row.measured else " (computed)"),
                self._peak_share(name),
                f"{row.above:.0f}" + ("" if row.measured else " (computed)"),
                self._above_share(name),
                f"{row.measured.seconds:.1f}" if row.measured else NOT_RUN,
                self._time_share(name, "eager"),
                self._time_share(name, "sdpa"),
            )
            for name, row in self.rows.items()
        ]

    def count_lines(self) -> Iterator[str]:
        """How the activations that are counted compare with what eager was measured to take."""
        eager = self.rows.get("eager")
        if eager and eager.measured:
            share = eager.counted / eager.measured.above
            yield f"{self.place}: {eager.counted:.0f} MiB counted, {share:.1%} of the measured {eager.above:.0f}."

    def saving_lines(self) -> Iterator[str]:
        """What each form saves."""
        for name, row in self.rows.items():
            if name == "eager" or "eager" not in self.rows or not row.measured:
                continue
            times = [
                f"{self._time_share(name, other)} of `{other}`'s time"
                for other in ("eager", "sdpa")
                if other != name and self._time_share(name, other)
            ]
            memory = (
                f"{self._peak_share(name)} of eager's peak memory ({self._above_share(name)} above the start)"
            )
            yield f"{self.place}, `{name}`: {', '.join([memory, *times])}."

    def _peak(self, row: Row) -> float:
        return row.measured.peak if row.measured else self.held + row.counted

    def _peak_share(self, name: str) -> str:
        return (
            f"{self._peak(self.rows[name]) / self._peak(self.rows['eager']):.1%}"
            if "eager" in self.rows
            else ""
        )

    def _above_share(self, name: str) -> str:
        return f"{self.rows[name].above / self.rows['eager'].above:.1%}" if "eager" in self.rows else ""

    def _time_share(self, name: str, other: str) -> str:
        own, others = (row and row.measured for row in (self.rows[name], self.rows.get(other)))
        return f"{own.seconds / others.seconds:.1%}" if own and others else ""
