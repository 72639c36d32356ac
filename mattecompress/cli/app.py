"""The command `mattecompress`: its verbs, and how errors leave it.

Exit codes: 0 done; 1 the work ran and a check failed; 2 bad input or environment, told in one line.
"""

import sys
from typing import Any

import typer

from mattecompress.cli import listing, making, running, testing, transforming
from mattecompress.errors import InternalError, UserError

_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="mattecompress",
    help="A compiler for matting networks: capture, transform, inspect, lower, link, run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for family in (transforming, running, testing, making, listing):
    family.register(app)


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
        _fail(error.format_message())
    else:
        sys.exit(code or 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"mattecompress: {' '.join(message.split())}\n")
    sys.exit(2)
