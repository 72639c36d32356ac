"""The verb that writes a page on quality: report."""

from pathlib import Path
from typing import Annotated

import typer

from mattecompress.cli.options import Frames, Output, Size, progress_bar, require_writable, say
from mattecompress.cli.running import fit_to, load_at


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
    from mattecompress.data.sources import frame_size, load_clips
    from mattecompress.inspection.quality_report import write_quality_report
    from mattecompress.preparation import fix_size

    require_writable(output)
    exact = fit_to(load_at(reference, size), data)
    known = frame_size(exact)
    measured = {path.stem: load_at(path, size) for path in programs}
    if known:
        measured = {name: fix_size(program, known) for name, program in measured.items()}
    clip = next(iter(load_clips(data, known, 1, frames)))
    with progress_bar() as progress:
        write_quality_report(output, measured, exact, clip, progress)
    say(f"{output}: {len(measured)} programs on {len(clip.frames)} frames")
