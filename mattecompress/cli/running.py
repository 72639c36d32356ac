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
    say,
)

if TYPE_CHECKING:
    from mattecompress.program import Program

Target = Annotated[str, typer.Option(help="A target; `mattecompress targets` lists them.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(build)
    app.command()(run)


def load_at(path: Path, size: str | None) -> "Program":
    """A program, its open sizes fixed where a size is given."""
    from mattecompress import container
    from mattecompress.pipeline_text import parse_pipeline

    program = container.load(path)
    if wanted := parse_size(size):
        program = parse_pipeline(f"set-resolution{{height={wanted[0]} width={wanted[1]}}},canonicalize").run(
            program
        )
    return program


def build(
    program: ProgramPath,
    target: Target = "host",
    emit: Annotated[str, typer.Option(help="exe, so or onnx.")] = "exe",
    output: Output = Path("dist"),
    size: Size = None,
    linker: Annotated[str | None, typer.Option(help="Link with this compiler.")] = None,
    strict: Annotated[bool, typer.Option(help="Fail where a layer falls back to floating point.")] = False,
) -> None:
    """Compile a program for a target.

    mattecompress build w8a8.mcg --target cortex-a76 --emit exe -o dist/
    """
    from mattecompress.emission import EMITTERS, emit_files
    from mattecompress.options import nearest

    if emit not in EMITTERS:
        raise ArgumentError(f"--emit '{emit}' is unknown{nearest(emit, EMITTERS)}")
    for path, note in emit_files(load_at(program, size), target, emit, output, linker, strict):
        say(f"{path}: {note}")


def run(
    program: ProgramPath,
    input: Annotated[
        str, typer.Option(help="A video, a picture, a folder of pictures, or procedural[:SEED].")
    ],
    alpha: Annotated[Path, typer.Option(help="Where the matte goes: a video, or a folder for pictures.")],
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
    """
    from mattecompress.matting import matte_clip
    from mattecompress.preparation import compile_program

    matting = load_at(program, size)
    artifact = compile_program(matting, backend, threads=threads)
    with progress_bar() as report:
        written = matte_clip(matting, artifact.run, input, alpha, composite, frames, report)
    for path in written:
        say(str(path))
