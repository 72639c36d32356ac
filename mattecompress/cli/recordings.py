"""What `inspect` shows of a folder that `opt --record` wrote."""

from pathlib import Path
from typing import TYPE_CHECKING

from mattecompress.cli.options import print_json, require_writable, say

if TYPE_CHECKING:
    from mattecompress.inspection.history import History, HistoryStep

COLUMNS = ("pass", "nodes that differ", "seconds", "nodes", "M MACs", "M binary", "MiB")


def show_recording(folder: Path, html: Path | None, json: bool) -> None:
    """A table of passes, the same as JSON, or a page that plays them.

    Raises:
        RecordError: the folder holds no recording.
    """
    from mattecompress.inspection.history import load_history
    from mattecompress.inspection.history_page import write_history_page

    if html:
        require_writable(html)
    history = load_history(folder)
    if html:
        write_history_page(html, history)
        say(str(html))
    if json:
        print_json(history.as_json())
    elif not html:
        print_history(history)


def print_history(history: "History") -> None:
    """A line for each pass: what it did, its time, and what the program costs behind it."""
    from mattecompress.cli.tables import print_table

    title = (
        f"{history.program}: {len(history.steps) - 1} passes{'' if history.finished else ', not finished'}"
    )
    print_table(title, COLUMNS, map(_row, history.steps), 5)


def _row(step: "HistoryStep") -> tuple[str, ...]:
    from rich.markup import escape

    from mattecompress.inspection.difference import SIGNS

    facts, totals = step.facts, step.totals
    counts = " ".join(f"{SIGNS[status]}{count}" for status, count in step.counts.items())
    figures = [totals.macs / 1e6, totals.binary_macs / 1e6, totals.size_mib] if totals else []
    seconds = f"{facts['seconds']:.3f}" if facts["pass"] else ""
    texts = [f"{figure:.2f}" for figure in figures] or [""] * 3
    name = facts["pass"].partition("{")[0] or "as given"
    return escape(name), counts, seconds, str(facts["nodes"]), *texts
