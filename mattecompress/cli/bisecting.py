"""The verb bisect."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.options import Json, ProgramPath, Seed, print_json, progress_bar, say
from mattecompress.cli.transforming import calibration_clips, calibration_options

if TYPE_CHECKING:
    from mattecompress.inspection.bisection import Bisection, StepError


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(bisect)


def bisect(
    program: ProgramPath,
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="Passes, separated by commas.")],
    input: Annotated[str, typer.Option(help="The clip to measure with.", metavar="CLIP")],
    max_error: Annotated[
        float,
        typer.Option(help="Allowed mean absolute difference of an output, from the program given.", min=0),
    ] = 0.05,
    calibration: Annotated[str | None, typer.Option(help="Clips for the passes; default: the same.")] = None,
    clips: Annotated[int, typer.Option(help="Calibration clips to take.", min=1)] = 1,
    frames: Annotated[int, typer.Option(help="Frames of each clip.", min=1)] = 4,
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Find the first pass whose program leaves the allowed error, and the first node that does. Exit code 1 if found.

    mattecompress bisect rvm.mcg -p 'ptq4vm{weights=2},lower' --input clip.mp4 --max-error 0.05

    mattecompress bisect rvm.mcg -p 'mse{weights=2}' --input procedural:3 --frames 2 --json
    """
    from mattecompress import container
    from mattecompress.data.sources import absolute_source, clip_inputs
    from mattecompress.inspection.bisection import bisect as find
    from mattecompress.pipeline import Context
    from mattecompress.pipeline_text import parse_pipeline

    passes = parse_pipeline(pipeline)
    given = container.load(program)
    source = calibration or input
    (clip,) = calibration_clips(input, given, passes, 1, frames)
    learned = calibration_clips(source, given, passes, clips, frames)
    with progress_bar() as report:
        context = Context(
            [clip_inputs(given, each) for each in learned], [each.alpha for each in learned], seed=seed
        )
        context.progress = report
        found = find(given, passes, clip_inputs(given, clip), max_error, context, _say_step)
    again = None
    if found.number is not None:
        prefix = type(passes)(passes.passes[: found.number])
        counts = calibration_options(source, clips, frames)
        words = ["opt", str(program), "-p", str(prefix), *counts, "--seed", str(seed), "-o", "left.mcg"]
        look = ["inspect", "left.mcg", "--error", absolute_source(input), "--frames", str(frames)]
        look += ["--reference", str(program)]
        look += ["--where", f"name={found.culprit.after[-1]}"] if found.culprit else ["--sort", "own_sqnr"]
        again = f"mattecompress {shlex.join(words)} && mattecompress {shlex.join(look)}"
    if json:
        print_json({**found.as_json(), "reproduce": again})
    else:
        _print_bisection(found, max_error, again)
    return int(found.number is not None)


def _say_step(step: "StepError") -> None:
    say(f"{step.seconds:8.3f} s  error {step.error:.3g}  {step.text}")


def _print_bisection(found: "Bisection", max_error: float, again: str | None) -> None:
    if found.number is None:
        typer.echo(f"no pass leaves an error of {max_error:g}")
        return
    step, culprit = found.steps[-1], found.culprit
    typer.echo(f"pass {found.number}, {step.text}, leaves an error of {max_error:g}: {step.error:.3g}")
    if culprit:
        where = f" in {culprit.region}" if culprit.region else ""
        typer.echo(
            f"first at %{culprit.before}{where}: {culprit.without:.3g} before it, {culprit.error:.3g} with it; it became"
        )
        for line in culprit.lines:
            typer.echo(f"  {line}")
    typer.echo(f"to see it again: {again}")
