"""Every link and every anchor of the pages leads somewhere, and every path that they name is there."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES, title, tokens

FOLDERS = ("mattecompress", "passes", "backends", "examples", "tests", "docs", "benchmarks")
MADE_BY_READERS = ("passes/cap_relu.py", "tests/passes/test_cap_relu.py")


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    parts = tokens(page)
    titles = [after.children or [] for part, after in pairwise(parts) if part.type == "heading_open"]
    found: Counter[str] = Counter()
    names = set()
    for children in titles:
        text = "".join(child.content for child in children).strip().lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def links(page: Path) -> list[str]:
    inline = [child for token in tokens(page) for child in token.children or []]
    found = [
        child.attrGet("href") or child.attrGet("src")
        for child in inline
        if child.type in ("link_open", "image")
    ]
    return [str(link) for link in found]


def broken(page: Path) -> list[str]:
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or target.is_dir() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`\n\n# One two\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#one-two-1) [b](#here) [c](https://example.org#x)\n"
        "[d](other.md#no-heading) [e](#there) [f](none.md) [g](../) `[h](none.md)` ![i](none.png)\n"
    )
    assert broken(page) == ["other.md#no-heading", "#there", "none.md", "../", "none.png"]


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_paths_are_there(page: Path) -> None:
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists() or path in MADE_BY_READERS, path


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)$", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
