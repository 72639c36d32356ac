"""Verbs that compile and run: build, run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.options import (
    ArgumentError,
    Frames,
    Output,
    ProgramPath,
    Size,
    Threads,
    parse_size,
    progress_bar,
    require_known,
    require_writable,
    say,
)
from mattecompress.files import require_empty

if TYPE_CHECKING:
    from mattecompress.program import Program

Target = Annotated[str, typer.Option(help="A target; `mattecompress targets` lists them.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(build)
    app.command()(run)


def load_at(path: Path, size: str | None) -> "Program":
    """A program, its open sizes fixed where a size is given.

    Raises:
        ContainerError: no such program. ResolutionError, PreconditionError: it cannot take the size.
    """
    from mattecompress import container
    from mattecompress.preparation import fix_size

    wanted = parse_size(size)
    program = container.load(path)
    return fix_size(program, wanted) if wanted else program


def fit_to(program: "Program", source: str) -> "Program":
    """A program of open size at the one nearest to a clip's, any other as it is.

    Raises:
        MediaError: the clip cannot be read.
    """
    from mattecompress.data.sources import source_size
    from mattecompress.interface import frame_size
    from mattecompress.preparation import fix_size, nearest_size

    if frame_size(program):
        return program
    natural = source_size(source)
    fitting = nearest_size(program, natural)
    if fitting != natural:
        say(f"{source}: {natural[0]}x{natural[1]} is resized to {fitting[0]}x{fitting[1]}")
    return fix_size(program, fitting)


def build(
    program: ProgramPath,
    target: Target = "host",
    emit: Annotated[str, typer.Option(help="exe, lib, so, onnx or qdq (ONNX before lowering).")] = "exe",
    output: Output = Path("dist"),
    size: Size = None,
    linker: Annotated[str | None, typer.Option(help="Link with this compiler.")] = None,
    strict: Annotated[bool, typer.Option(help="Fail where a layer falls back to floating point.")] = False,
) -> None:
    """Compile a program for a target.

    mattecompress build w8a8.mcg --target cortex-a76 --emit exe -o dist/

    mattecompress build w8a8.mcg --emit onnx -o dist/
    """
    from mattecompress.emission import EMITTERS, PORTABLE, emit_files

    require_known("--emit", emit, EMITTERS)
    if emit in PORTABLE and (target != "host" or linker):
        raise ArgumentError(f"--emit {emit} makes a model for every machine: leave --target and --linker out")
    require_writable(output, folder=True)
    for path, note in emit_files(load_at(program, size), target, emit, output, linker, strict):
        say(f"{path}: {note}")


def run(
    program: ProgramPath,
    input: Annotated[
        str, typer.Option(help="A video, a picture, a folder of pictures, or procedural[:SEED].")
    ],
    alpha: Annotated[Path, typer.Option(help="Where the matte goes: a video, or a folder for pictures.")],
    trimap: Annotated[
        str | None,
        typer.Option(help="Trimaps, black, grey and white, as --input, of programs that take them."),
    ] = None,
    backend: Annotated[str, typer.Option(help="reference, onnx or tvm.")] = "reference",
    composite: Annotated[
        str | None, typer.Option(help="Also write the person over this colour, '#00b140'.")
    ] = None,
    frames: Frames = None,
    size: Size = None,
    threads: Threads = 1,
) -> None:
    """Matte a clip.

    mattecompress run w8a8.mcg --backend tvm --input clip.mp4 --alpha alpha.mp4 --composite '#00b140'

    mattecompress run rvm.mcg --size 288x512 --input pictures/ --alpha mattes/

    mattecompress run vitmatte.mcg --input photo.png --trimap trimap.png --alpha matte.png
    """
    import torch

    from mattecompress.matting import composite_path, matte_clip
    from mattecompress.preparation import compile_program

    torch.set_num_threads(threads)
    for place in (alpha, composite_path(alpha)) if composite else (alpha,):
        require_writable(place, folder=not place.suffix)
        if not place.suffix:
            require_empty(place)
    matting = fit_to(load_at(program, size), input)
    artifact = compile_program(matting, backend, threads=threads)
    with progress_bar() as report:
        written = matte_clip(matting, artifact.over_clips(), input, alpha, composite, frames, trimap, report)
    for path in written:
        say(str(path))
