"""Options and values that several verbs share."""

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mattecompress.errors import UserError
from mattecompress.files import UnwritableError
from mattecompress.options import nearest

Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.")]
Frames = Annotated[int | None, typer.Option(help="Use only this many frames.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Seed = Annotated[int, typer.Option(help="Every random draw comes from it.", min=0)]
Size = Annotated[str | None, typer.Option(help="Frame size, HEIGHTxWIDTH.", metavar="HxW")]
Threads = Annotated[int, typer.Option(help="Threads to compute with.", min=1)]
ProgramPath = Annotated[Path, typer.Argument(help="A program, .mcg.", metavar="PROGRAM")]


class ArgumentError(UserError):
    """A value on the command line that cannot be read."""


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from `288x512`."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if 0 in size:
        raise ArgumentError(f"--size '{text}': expected HEIGHTxWIDTH, such as 288x512")
    return size


def require_known(option: str, value: str, known: Iterable[str]) -> None:
    """Raise `ArgumentError`, with the nearest names, for a value of `option` that is not among those known."""
    known = list(known)
    if value not in known:
        raise ArgumentError(f"{option} '{value}' is unknown{nearest(value, known)}")


def given_options(context: typer.Context) -> list[str]:
    """The long names of the options on the command line."""
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.param_type_name == "option" and _is_given(context, parameter.name)
    ]


def refuse(context: typer.Context, refused: Collection[str], why: str) -> None:
    """Raise `ArgumentError`, `--NAME` and why, for an option on the command line that is among those refused."""
    for option in given_options(context):
        if option in refused:
            raise ArgumentError(f"{option} {why}")


def refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Raise `ArgumentError`, `--NAME` and why, for an option on the command line that is not among those allowed."""
    refuse(context, [option for option in given_options(context) if option not in allowed], why)


def _is_given(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


def require_writable(path: Path, folder: bool = False) -> None:
    """Raise `UnwritableError` before work begins that could not be saved at `path`; writes nothing.

    folder: `path` is to be a folder of files, rather than one file.
    """
    if path.is_dir() and not folder:
        raise UnwritableError(f"cannot write {path}: it is a folder; name a file")
    standing = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not standing.is_dir() and (folder or standing != path):
        raise UnwritableError(f"cannot write {path}: {standing} is no folder; choose another place")
    if not os.access(standing, os.W_OK):
        raise UnwritableError(f"cannot write {path}: {standing} is read-only; choose another place")


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
