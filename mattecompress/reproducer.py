"""When a pass breaks a program: what is needed to see it again, in one folder."""

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mattecompress import container
from mattecompress.errors import UserError
from mattecompress.pipeline import Announcement, Context, Hook, PassError, Pipeline
from mattecompress.program import Program


def run_with_reproducer(
    pipeline: Pipeline,
    program: Program,
    context: Context,
    after_each: Sequence[Hook] = (),
    before_each: Sequence[Announcement] = (),
    options: Sequence[str] = (),
) -> Program:
    """Run a pipeline; when a pass fails, save the program it was given and the command that fails again.

    options: what else the command needs, such as `--calibration clips/`.

    Raises:
        PassError: a pass failed; with the folder's name at its end.
        UserError, OSError: as the passes and hooks raise them; nothing is saved.
    """
    last = [program]
    try:
        hooks = [*after_each, lambda step: last.append(step.result.program)]
        return pipeline.run(program, context, hooks, before_each)
    except (UserError, OSError):
        raise
    except Exception as error:
        rest = Pipeline(pipeline.passes[len(last) - 1 :])
        broken = isinstance(error, PassError)
        reason = str(error) if broken else f"{rest.passes[0]}: {type(error).__name__}: {error}"
        folder = _save(last[-1], rest, context.seed, options)
        raise PassError(f"{reason}\nto see it again: cd {folder} && sh reproduce.sh") from error


def _save(program: Program, rest: Pipeline, seed: int, options: Sequence[str]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mattecompress-"))
    container.save(program, folder / "before.mcg")
    words = ["opt", "before.mcg", "-p", str(rest), "--seed", str(seed), *options, "--print-after", "all"]
    (folder / "reproduce.sh").write_text(f"#!/bin/sh\nmattecompress {shlex.join(words)}\n")
    return folder
