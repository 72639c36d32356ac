"""How pages for a browser are written: a Jinja2 template, and what its script reads as one JSON document in it."""

import json
import math
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from mattecompress.files import atomic_path
from mattecompress.inspection.difference import SIGNS

TOTALS = {
    "parameters": "parameters",
    "macs": "MACs a frame",
    "binary_macs": "binary MACs a frame",
    "paper_gflops": "GFLOPs by the papers' rule",
    "size_mib": "MiB of weights",
    "activation_mib": "MiB of activations",
}
LONGEST = 22
"""Letters of a name that a box of the drawing has room for."""


def render(path: Path, template: str, document: dict[str, Any], **values: Any) -> None:
    """Write a page; its template sees the document, the same as `data` for the script, the signs, and values.

    Figures that are no numbers are null in both.

    Raises:
        UnwritableError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mattecompress", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"short": short, "clipped": _clipped, "ended": _ended}
    document = _finite(document)
    data = htmlsafe_json_dumps(document, dumps=json.dumps, separators=(",", ":"), allow_nan=False)
    page = environment.get_template(template).render(
        document=document, data=data, signs=SIGNS, totals=TOTALS, **values
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _finite(value: Any) -> Any:
    """Lists for tuples and None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(value: float | None, unit: str = "") -> str:
    """Three digits, a factor and a unit: `1.23 MB`."""
    if value is None:
        return ""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _clipped(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _ended(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
