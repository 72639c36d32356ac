"""The written pages, and what stands in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))
PAGES = [README, *sorted(DOCS.glob("*.md")), *EXAMPLES, ROOT / "CHANGELOG.md"]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
"""Stands above a block that no test runs, with the reason."""


@dataclass(frozen=True)
class Block:
    """Code in a page: its language, its text, the line it begins at, and why it is not run."""

    page: Path
    kind: str
    code: str
    line: int
    excuse: str | None

    @property
    def steps(self) -> list[tuple[str, list[str]]]:
        """Commands, continued lines joined, and of a transcript, where they stand behind `$`, the lines that answer."""
        lines = [line for line in self.code.replace("\\\n", " ").splitlines() if line.strip()]
        if self.kind == "sh":
            return [(line, []) for line in lines]
        found: list[tuple[str, list[str]]] = []
        for line in lines:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found

    @property
    def is_code(self) -> bool:
        """Whether it can be run: a `text` block only where there are commands in it."""
        return self.kind not in ("text", "diff") or bool(self.steps)


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path, *kinds: str) -> Iterator[Block]:
    """Fenced blocks of these languages, or of all."""
    above = ""
    for token in tokens(page):
        if token.type == "fence" and (not kinds or token.info in kinds):
            excuse = NOT_RUN.fullmatch(above.strip())
            assert token.map
            yield Block(page, token.info, token.content, token.map[0] + 1, excuse[1] if excuse else None)
        above = token.content if token.type == "html_block" else ""


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))
