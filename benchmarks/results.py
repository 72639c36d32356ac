"""What the benchmarks share: words on the way, results that are kept, and pages made of them."""

import datetime
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from mattecompress.files import atomic_path


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{message}\n")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def render_page(path: Path, template: str, **values: Any) -> None:
    """A template of this folder with these values, and with what they are true of: machine, torch, date."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    page = environment.get_template(template).render(
        values, machine=machine()["cpu"], torch=torch.__version__, date=datetime.date.today().isoformat()
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the standard deviation of a sample where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def machine() -> dict[str, Any]:
    """What the numbers are true of."""
    found = None
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = found[1] if found else platform.processor()
    return {"cpu": name or platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}
