"""Writes the pages that are made from the code: run `make docs` after changing a pass, a pipeline or a verb."""

from pathlib import Path

from catalogue import catalogue
from command_line import command_line

HERE = Path(__file__).parent
PAGES = {HERE / "pass-catalogue.md": catalogue, HERE / "command-line.md": command_line}


if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page())
