"""The page of the command line's verbs, from the command itself."""

from collections.abc import Iterator
from typing import Any

import typer

from mattecompress.cli.app import app

NAME = "mattecompress"
HEAD = """\
# Command line

Made by `make docs` from the command itself; `mattecompress VERB --help` prints the same.

Sizes are HEIGHTxWIDTH. Progress and remarks go to standard error; `--json` prints one JSON document on standard output
and nothing else. Exit codes: 0, done; 1, the work ran and a check failed; 2, bad input or a missing part of the
environment, told in one line.
"""


def command_line() -> str:
    """The page."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name=NAME)
    verbs = command.commands.items()
    index = [f"- [{verb}](#{verb}): {' '.join(_paragraphs(part)[0].split())}" for verb, part in verbs]
    return "\n".join([HEAD, *index, "", *(_describe(verb, part, context) for verb, part in verbs)])


def _describe(verb: str, command: Any, context: typer.Context) -> str:
    examples = [text for text in _paragraphs(command)[1:] if text.startswith(NAME)]
    prose = [text for text in _paragraphs(command)[1:] if text not in examples]
    parts = [f"## {verb}\n", " ".join(_paragraphs(command)[0].split()) + "\n"]
    parts += [f"{' '.join(text.split())}\n" for text in prose]
    parts += ["<!-- not run: names files of its own -->", "```sh", *examples, "```\n"]
    return "\n".join([*parts, *_table(command, context)])


def _paragraphs(command: Any) -> list[str]:
    return (command.help or "").split("\n\n")


def _table(command: Any, context: typer.Context) -> Iterator[str]:
    records = [record for part in command.params if (record := part.get_help_record(context))]
    if records:
        yield "| | |\n|---|---|"
    for name, meaning in records:
        yield f"| `{name}` | {meaning} |".replace("  [", " [")
    if records:
        yield ""
