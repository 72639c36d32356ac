"""When a pass breaks a program: what is needed to see it again, in one folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mattecompress import container
from mattecompress.pipeline import Context, Hook, PassError, Pipeline
from mattecompress.program import Program


def run_with_reproducer(
    pipeline: Pipeline, program: Program, context: Context, after_each: Sequence[Hook] = ()
) -> Program:
    """Run a pipeline; when a pass fails, save the program it was given and the command that fails again.

    Raises:
        PassError: with the folder's name at its end.
    """
    last = [program]
    try:
        return pipeline.run(program, context, [*after_each, lambda step: last.append(step.result.program)])
    except PassError as error:
        folder = Path(tempfile.mkdtemp(prefix="mattecompress-"))
        container.save(last[-1], folder / "before.mcg")
        rest = Pipeline(pipeline.passes[len(last) - 1 :])
        command = f"mattecompress opt before.mcg -p '{rest}' --seed {context.seed} --print-after all"
        (folder / "reproduce.sh").write_text(f"#!/bin/sh\n{command}\n")
        raise PassError(f"{error}\nto see it again: cd {folder} && sh reproduce.sh") from error
