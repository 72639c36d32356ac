"""One self-contained page for a browser that plays a pipeline's recording: what each pass did, took and saved.

What its script reads; a text stands once in `texts`, whichever steps have it:

    {"program", "pipeline", "finished", "texts": [TEXT, ...],
     "steps": [{as the index has it, "counts", "lines": [NUMBER, ...], "marks": LETTERS, "regions", "differences"}]}

`marks` has a letter for each line, a capital where the line is gone.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mattecompress.inspection.difference import STATUSES
from mattecompress.inspection.history import History
from mattecompress.inspection.page_template import render

TEMPLATE = "history.html"
LETTERS = {"kept": "k", "noted": "n", "changed": "c", "replaced": "r", "added": "a", "removed": "x"}
UNUSED = ("region", "kinds_before", "kinds_after")
"""Of a difference, what its lines say already."""


def write_history_page(path: Path, history: History) -> None:
    """Write the page.

    Raises:
        UnwritableError: the file cannot be written.
    """
    render(path, TEMPLATE, history_document(history), title=f"{history.program}, pass by pass")


def history_document(history: History) -> dict[str, Any]:
    """What the page's script reads."""
    texts: dict[str, int] = {}
    document = history.as_json()
    for entry, step in zip(document["steps"], history.steps, strict=True):
        letters = [LETTERS[line.mark].upper() if line.gone else LETTERS[line.mark] for line in step.lines]
        entry["lines"] = [texts.setdefault(line.text, len(texts)) for line in step.lines]
        entry["marks"] = "".join(letters)
        entry["differences"] = [
            {key: value for key, value in asdict(node).items() if key not in UNUSED} for node in step.nodes
        ]
        entry["regions"] = [
            asdict(region) for region in step.regions if any(getattr(region, status) for status in STATUSES)
        ]
    return {**document, "texts": [*texts]}
