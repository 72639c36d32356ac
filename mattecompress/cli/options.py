"""Options and values that several verbs share."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mattecompress.errors import UserError

Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.")]
Frames = Annotated[int | None, typer.Option(help="Use only this many frames.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Seed = Annotated[int, typer.Option(help="Every random draw comes from it.")]
Size = Annotated[str | None, typer.Option(help="Frame size, HEIGHTxWIDTH.", metavar="HxW")]
Threads = Annotated[int, typer.Option(help="Threads to compute with.", min=1)]
ProgramPath = Annotated[Path, typer.Argument(help="A program, .mcg.", metavar="PROGRAM")]


class ArgumentError(UserError):
    """A value on the command line that cannot be read."""


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from `288x512`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise ArgumentError(f"--size '{text}': expected HEIGHTxWIDTH, such as 288x512")
    return int(match[1]), int(match[2])


def say(message: str) -> None:
    """One line to a person, on standard error."""
    sys.stderr.write(f"{message}\n")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A callback (done, total, what) that draws a bar on standard error, or nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report
