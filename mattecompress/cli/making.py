"""Verbs that make things from nothing: train, demo."""

from pathlib import Path
from typing import Annotated

import typer

from mattecompress.cli.options import Output, Seed, Size, parse_size, say


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(demo)


def demo(
    output: Output = Path("demo"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of RVM MobileNetV3; default: our own.")
    ] = None,
    input: Annotated[Path | None, typer.Option(help="A video; default: a clip made from the seed.")] = None,
    size: Size = None,
    frames: Annotated[int, typer.Option(help="Frames to matte.", min=4)] = 24,
    seed: Seed = 7,
) -> None:
    """Take a float RVM to a verified ARM binary, and show every step in one folder.

    mattecompress demo -o demo/

    mattecompress demo --checkpoint rvm.pth --input me.mp4 --size 288x512
    """
    from mattecompress.demo import run_demo

    for line in run_demo(output, checkpoint, input, parse_size(size), frames, seed, say):
        typer.echo(line)
