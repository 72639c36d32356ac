"""Verbs that make networks, clips and a tour of it all: train, compose, demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.options import (
    ArgumentError,
    Output,
    Seed,
    Size,
    parse_size,
    progress_bar,
    require_known,
    require_writable,
    say,
)

if TYPE_CHECKING:
    from mattecompress.data.datasets.mixing import MixedClips


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(train)
    app.command()(compose)
    app.command()(demo)


def train(
    output: Output,
    recipe: Annotated[str, typer.Option(help="A recipe; `mattecompress recipes` lists them.")] = "rvm-small",
    data: Annotated[
        str | None, typer.Option(help="A data set of foregrounds; default: procedural clips.")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="With --data: a folder of videos or pictures to put behind it.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to begin with; default: random.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Trained weights of the recipe's teacher, where it has one.")
    ] = None,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0; default: a GPU if there is one.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop, with a checkpoint, after this step.", min=1)
    ] = None,
) -> None:
    """Train a network on clips made on the fly; a run that was broken off goes on where it stopped.

    The clips are procedural, or foregrounds of a data set over backgrounds.

    mattecompress train --recipe rvm-small -o trained/

    mattecompress capture rvm-mobilenetv3 --checkpoint trained/weights.safetensors -o trained.mcg

    mattecompress train --recipe rvm --data VideoMatte240K/train --backgrounds DVM/train -o trained/

    mattecompress train --recipe bivm-small --teacher twin/weights.safetensors -o trained/

    torchrun --nproc-per-node 4 -m mattecompress train --recipe rvm -o trained/
    """
    from mattecompress.training.loop import train as train_recipe
    from mattecompress.training.recipes import find_recipe

    wanted = find_recipe(recipe)
    require_writable(output, folder=True)
    _check_device(device)
    clips = _mixed_clips(data, backgrounds)
    record = train_recipe(
        wanted,
        output,
        seed,
        name=recipe,
        data=clips,
        checkpoint=checkpoint,
        teacher=teacher,
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


def _mixed_clips(data: str | None, backgrounds: Path | None) -> "MixedClips | None":
    from mattecompress.data.datasets.footage import open_backgrounds
    from mattecompress.data.datasets.layouts import open_dataset
    from mattecompress.data.datasets.mixing import MixedClips

    if data is None and backgrounds is None:
        return None
    if data is None or backgrounds is None:
        raise ArgumentError(
            "--data and --backgrounds go together: give both, or neither for procedural clips"
        )
    return MixedClips(open_dataset(data).foregrounds, open_backgrounds(backgrounds))


def _check_device(device: str | None) -> None:
    import torch

    known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in (None, *known):
        raise ArgumentError(f"--device '{device}': expected {' or '.join(known)}, which this machine has")


def compose(
    foregrounds: Annotated[
        str, typer.Argument(help="A data set of foregrounds: FOLDER or LAYOUT:FOLDER.", metavar="FOREGROUNDS")
    ],
    backgrounds: Annotated[Path, typer.Option(help="A folder of videos (motion) or pictures (static).")],
    output: Output,
    clips: Annotated[int, typer.Option(help="Clips to make.", min=1)] = 20,
    frames: Annotated[int, typer.Option(help="Frames of each.", min=1)] = 100,
    size: Size = None,
    format: Annotated[str, typer.Option(help="png, or jpg for large frames.")] = "png",
    seed: Seed = 10,
) -> None:
    """Make test clips by the rules of RVM's evaluation sets: foregrounds over backgrounds, in folders com, pha, fgr.

    Frames are 288x512, of foregrounds that are pictures 512x512, unless --size says otherwise. The same command gives
    the same bytes; one that was broken off goes on where it stopped.

    mattecompress compose VideoMatte240K/test --backgrounds videos/ -o videomatte_512x288/videomatte_motion

    mattecompress compose Distinctions-646/Test --backgrounds pictures/ --size 512x512 -o d646_static

    mattecompress compose aim:Test_set --backgrounds videos/ --size 2048x2048 --format jpg --seed 13 -o aim_motion
    """
    from mattecompress.data.datasets.composing import SUFFIXES, Rules
    from mattecompress.data.datasets.composing import compose as compose_clips
    from mattecompress.data.datasets.footage import open_backgrounds
    from mattecompress.data.datasets.layouts import open_dataset

    require_known("--format", format, SUFFIXES)
    rules = Rules(clips, frames, parse_size(size), seed, SUFFIXES[format])
    require_writable(output, folder=True)
    front, behind = open_dataset(foregrounds), open_backgrounds(backgrounds)
    with progress_bar() as report:
        height, width = compose_clips(front, behind, output, rules, report)
    say(f"{output}: {clips} clips of {frames} frames, {height}x{width}")


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
