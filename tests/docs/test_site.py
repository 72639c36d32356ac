"""The site is built without a warning, and what is broken stops it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import DOCS, PAGES, README

for package in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'mattecompress[docs]'")


def build(source: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    strict = ["-q", "-W", "--keep-going", "-n", "-c", str(source / "docs")]
    command = [sys.executable, "-m", "sphinx", *strict, str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_page_is_in_it(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    for page in PAGES:
        assert (tmp_path / page.relative_to(ROOT)).with_suffix(".html").is_file()
    shown = (tmp_path / "README.html").read_text()
    assert 'href="docs/command-line.html"' in shown
    for name in ("Cascadia", "https://fonts", "cdn"):
        assert name not in shown


def test_a_broken_anchor_stops_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DOCS, source / "docs")
    (source / "examples").mkdir()
    (source / "examples" / "README.md").write_text("# Examples\n")
    (source / "CHANGELOG.md").write_text("# Changes\n")
    (source / "README.md").write_text("# Broken\n\n[a](docs/quick-start.md#nowhere)\n")
    built = build(source, tmp_path / "site")
    assert built.returncode != 0 and "nowhere" in built.stderr
    assert README.is_file()
