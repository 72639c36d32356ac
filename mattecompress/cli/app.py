"""The command `mattecompress`: its verbs, and how errors leave it.

Exit codes: 0 done; 1 the work ran and a check failed; 2 bad input or environment, told in one line.
"""

import importlib.metadata
import sys
from typing import Annotated, Any

import typer

from mattecompress.cli import (
    bisecting,
    inspecting,
    listing,
    making,
    reporting,
    running,
    scanning,
    testing,
    transforming,
)
from mattecompress.errors import InternalError, UserError

_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="mattecompress",
    help="A compiler for matting networks: capture, transform, inspect, lower, link, run.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for family in (transforming, inspecting, bisecting, running, testing, scanning, reporting, making, listing):
    family.register(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"mattecompress {importlib.metadata.version('mattecompress')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run one verb and leave with its exit code."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except InternalError as error:
        sys.stderr.write(f"mattecompress: {error}\n")
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "mattecompress"
        _fail(f"{error.format_message()} (see {where} --help)")
    else:
        sys.exit(code or 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"mattecompress: {' '.join(message.split())}\n")
    sys.exit(2)
