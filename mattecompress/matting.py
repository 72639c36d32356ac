"""From a clip to a matte on disk."""

import re
from pathlib import Path

import torch

from mattecompress.data.sources import frame_size, load_clips
from mattecompress.data.video import composite, write_frames
from mattecompress.errors import UserError
from mattecompress.evaluation import predict
from mattecompress.preparation import compile_program
from mattecompress.program import Program


class ColourError(UserError):
    """A colour that cannot be read."""


def matte_clip(
    program: Program,
    source: str,
    alpha_path: Path,
    backend: str = "reference",
    colour: str | None = None,
    frames: int | None = None,
    threads: int = 1,
) -> list[Path]:
    """Write the alpha of a clip and, given a colour such as `#00b140`, the foreground composed over it.

    The composite goes beside the alpha, as `NAME-composite`. Returns the paths written.

    Raises:
        MediaError: the source cannot be read. ColourError: the colour cannot be.
    """
    background = parse_colour(colour) if colour else None
    artifact = compile_program(program, backend, threads=threads)
    (clip,) = load_clips(source, frame_size(program), 1, frames)
    alpha, foreground = predict(program, artifact.run, clip)
    write_frames(alpha_path, alpha)
    if background is None:
        return [alpha_path]
    beside = alpha_path.with_name(f"{alpha_path.stem}-composite{alpha_path.suffix}")
    write_frames(beside, composite(alpha, clip.frames if foreground is None else foreground, background))
    return [alpha_path, beside]


def parse_colour(text: str) -> torch.Tensor:
    """(3,) float32 in 0..1 from `#00b140`.

    Raises:
        ColourError: anything else.
    """
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ColourError(f"'{text}' is no colour: write it as #rrggbb, such as #00b140")
    return torch.tensor([int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)])
