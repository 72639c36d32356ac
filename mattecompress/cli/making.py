"""Verbs that make things from nothing: train, demo."""

from pathlib import Path
from typing import Annotated

import typer

from mattecompress.cli.options import ArgumentError, Output, Seed, Size, parse_size, require_writable, say


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(train)
    app.command()(demo)


def train(
    output: Output,
    recipe: Annotated[str, typer.Option(help="A recipe; `mattecompress recipes` lists them.")] = "rvm-small",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to begin with; default: random.")] = None,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0; default: a GPU if there is one.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop, with a checkpoint, after this step.", min=1)
    ] = None,
) -> None:
    """Train a network on clips made on the fly; a run that was broken off goes on where it stopped.

    mattecompress train --recipe rvm-small -o trained/

    mattecompress capture rvm-mobilenetv3 --checkpoint trained/weights.safetensors -o trained.mcg

    torchrun --nproc-per-node 4 -m mattecompress train --recipe rvm -o trained/
    """
    from mattecompress.training.loop import train as train_recipe
    from mattecompress.training.recipes import find_recipe

    wanted = find_recipe(recipe)
    require_writable(output, folder=True)
    _check_device(device)
    record = train_recipe(
        wanted,
        output,
        seed,
        name=recipe,
        checkpoint=checkpoint,
        device=device,
        save_every=save_every,
        stop_after=stop_after,
    )
    if record is None:
        say(
            f"{output}: stopped after step {stop_after} of {wanted.steps}; the same command goes on from here"
        )
        return
    say(f"{record.weights}: {wanted.steps} steps, last loss {record.losses[-1]:.4f}; {record.record}")


def _check_device(device: str | None) -> None:
    import torch

    known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in (None, *known):
        raise ArgumentError(f"--device '{device}': expected {' or '.join(known)}, which this machine has")


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
    from mattecompress.backends import load_backend

    load_backend("tvm")
    from mattecompress.demo import run_demo

    for line in run_demo(output, checkpoint, input, parse_size(size), frames, seed, say):
        typer.echo(line)
