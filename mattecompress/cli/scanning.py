"""The verb that searches precisions: scan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.options import (
    ArgumentError,
    Frames,
    Json,
    ProgramPath,
    Seed,
    Size,
    print_json,
    progress_bar,
    require_writable,
)
from mattecompress.cli.running import fit_to, load_at

if TYPE_CHECKING:
    from mattecompress.measuring.sensitivity import Choice, Scan

SUFFIXES = (".png", ".svg", ".pdf")


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(scan)


def scan(
    program: ProgramPath,
    calibration: Annotated[str, typer.Option(help="A video, a folder, or procedural[:SEED].")] = "procedural",
    clips: Annotated[int, typer.Option(help="Clips to take.", min=1)] = 1,
    frames: Frames = 8,
    precisions: Annotated[
        str, typer.Option(help="Bits of weights and activations to try.")
    ] = "w2a8,w4a8,w8a8",
    budget: Annotated[
        float | None, typer.Option(help="MiB of weights for the rules; default: half of the way down.", min=0)
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it, .png, .svg or .pdf.")] = None,
    size: Size = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find which regions need their bits: each alone in each precision, the error of alpha, and rules from that.

    mattecompress scan rvm.mcg --calibration clip.mp4 --budget 2.5 --picture scan.png

    mattecompress scan rvm.mcg --size 144x256 --precisions w3a8,w4a8,w6a8,w8a8 --json
    """
    from mattecompress.data.sources import clip_inputs, load_clips
    from mattecompress.interface import frame_size
    from mattecompress.measuring.sensitivity import Scanner

    if picture:
        _require_drawable(picture)
    scanned = fit_to(load_at(program, size), calibration)
    loaded = load_clips(calibration, frame_size(scanned), clips, frames)
    with progress_bar() as report:
        scanner = Scanner(scanned, [clip_inputs(scanned, clip) for clip in loaded], seed)
        result = scanner.scan(precisions.split(","), report, budget)
    choice = result.within(budget)
    ends = {"largest": result.choices[0], "chosen": choice, "smallest": result.choices[-1]}
    measured = {name: (end, scanner.measure(end)) for name, end in ends.items()}
    if json:
        document = {
            name: {"pipeline": end.pipeline, "measured": error} for name, (end, error) in measured.items()
        }
        print_json({**result.as_json(), **document})
    else:
        _print(result, measured)
    if picture:
        from mattecompress.measuring.sensitivity_plot import plot_scan

        plot_scan(
            result, [(name, end.weight_bytes, error) for name, (end, error) in measured.items()], picture
        )


def _require_drawable(picture: Path) -> None:
    from mattecompress.measuring.sensitivity_plot import require_matplotlib

    require_writable(picture)
    if picture.suffix not in SUFFIXES:
        raise ArgumentError(f"--picture {picture}: name a file that ends in .png, .svg or .pdf")
    require_matplotlib()


def _print(scan: "Scan", measured: "dict[str, tuple[Choice, float]]") -> None:
    from mattecompress.cli.tables import print_table
    from mattecompress.measuring.sensitivity import MIB

    errors = {(cell.region, cell.precision): cell.error for cell in scan.cells}
    regions, precisions = (list(dict.fromkeys(names)) for names in zip(*errors, strict=True))
    chosen, _ = measured["chosen"]
    rows = [
        (region, chosen.precisions[region], *(f"{1e6 * errors[region, bits]:.3g}" for bits in precisions))
        for region in regions
    ]
    print_table("mean squared error of alpha x 1e6", ("region", "chosen", *precisions), rows, len(precisions))
    wholes = [
        (name, f"{choice.weight_bytes / MIB:.3f}", f"{1e6 * choice.error:.3g}", f"{1e6 * error:.3g}")
        for name, (choice, error) in measured.items()
    ]
    print_table("whole programs", ("choice", "MiB of weights", "expected", "measured"), wholes, 3)
    typer.echo(chosen.pipeline)
