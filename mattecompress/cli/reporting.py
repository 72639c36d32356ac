"""The verb that writes a page on quality: report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mattecompress.cli.clip_runs import clip_for, fit_all
from mattecompress.cli.options import ArgumentError, Frames, Output, Size, progress_bar, require_writable, say
from mattecompress.cli.running import load_at


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(report)


def report(
    programs: Annotated[list[Path], typer.Argument(help="Programs, .mcg.", metavar="PROGRAM...")],
    output: Output,
    reference: Annotated[Path, typer.Option(help="The float program that they were made of.")],
    data: Annotated[
        str, typer.Option(help="A video, a folder, or procedural[:SEED] to measure on.")
    ] = "procedural",
    frames: Frames = 24,
    size: Size = None,
) -> None:
    """Write a page on what quantization did: metrics, error over time and by region, affine numbers, pictures.

    mattecompress report mse.mcg qdrop.mcg ptq4vm.mcg --reference rvm.mcg --data clip.mp4 -o report.html

    What calibrate-affine found is drawn where the program that it began with is among them.
    """
    from mattecompress.inspection.quality_report import write_quality_report

    require_writable(output)
    names = names_of(programs)
    exact, *measured = fit_all([load_at(path, size) for path in (reference, *programs)], data)
    clip = clip_for(exact, data, frames)
    with progress_bar() as progress:
        named = dict(zip(names, measured, strict=True))
        write_quality_report(output, named, exact, clip, progress)
    say(f"{output}: {len(named)} programs on {len(clip.frames)} frames")


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each file's name without `.mcg`, behind as many of its folders as tell it from the others.

    Raises:
        ArgumentError: a file is there twice.
    """
    parts = [(*path.absolute().parts[1:-1], path.name.removesuffix(".mcg")) for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise ArgumentError(f"{path} is named twice: name each program once")
    return ["/".join(_shortest(own, parts)) for own in parts]


def _shortest(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The end of a path that no other of them has."""
    ends = (own[-length:] for length in range(1, len(own)))
    return next((end for end in ends if sum(other[-len(end) :] == end for other in others) == 1), own)
