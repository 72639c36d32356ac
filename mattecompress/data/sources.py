"""Clips by name: a video, a folder of videos or pictures, or clips made from a seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mattecompress.data.clips import procedural_clip
from mattecompress.data.frames import MediaError
from mattecompress.data.video import VIDEOS, read_frames
from mattecompress.program import Program

DEFAULT_SIZE = (144, 256)
VIDEO_SUFFIXES = {*VIDEOS, ".avi", ".webm", ".y4m"}


@dataclass(frozen=True)
class SourceClip:
    """Frames (T,3,H,W) float32 in 0..1; alpha (T,1,H,W) and foreground (T,3,H,W) where they are known."""

    name: str
    frames: Tensor
    alpha: Tensor | None = None
    foreground: Tensor | None = None


def load_clips(source: str, size: tuple[int, int] | None, clips: int, frames: int | None) -> list[SourceClip]:
    """Up to `clips` clips of up to `frames` frames each.

    source: a video file (consecutive pieces of it are the clips), a folder of videos (one clip each), a picture
        or a folder of pictures (one clip), or `procedural` / `procedural:SEED`.
    size: (height, width) that frames are resized to; None keeps them as they are (144x256 for procedural clips).

    Raises:
        MediaError: nothing is there, or it cannot be decoded.
    """
    kind, _, seed = source.partition(":")
    if kind == "procedural":
        made = (
            _make_clip(int(seed or 0), index, frames or 24, size or DEFAULT_SIZE) for index in range(clips)
        )
        return list(made)
    path = Path(source)
    videos = sorted(item for item in path.iterdir() if item.suffix in VIDEO_SUFFIXES) if path.is_dir() else []
    if videos:
        return [_read_clip(video, size, frames) for video in videos[:clips]]
    if path.suffix in VIDEO_SUFFIXES and clips > 1 and frames:
        return list(_cut(path, size, clips, frames))
    return [_read_clip(path, size, frames)]


def calibration_clips(source: str, program: Program, clips: int, frames: int) -> list[Tensor]:
    """Frames of clips at the program's size."""
    return [clip.frames for clip in load_clips(source, frame_size(program), clips, frames)]


def frame_size(program: Program) -> tuple[int, int] | None:
    """(height, width) of the program's frame; None while it is open."""
    states = {state.input for state in program.states}
    frame = next(node for node in program.inputs if node.target not in states)
    height, width = program.facts(frame).shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _make_clip(seed: int, index: int, frames: int, size: tuple[int, int]) -> SourceClip:
    clip = procedural_clip(seed, index, frames, *size)
    return SourceClip(f"procedural-{seed}-{index}", clip.frames, clip.alpha, clip.foreground)


def _read_clip(path: Path, size: tuple[int, int] | None, frames: int | None) -> SourceClip:
    return SourceClip(path.stem, torch.stack(list(read_frames(path, limit=frames, size=size))))


def _cut(path: Path, size: tuple[int, int] | None, clips: int, frames: int) -> Iterator[SourceClip]:
    stream = read_frames(path, limit=clips * frames, size=size)
    for number in range(clips):
        piece = list(islice(stream, frames))
        if not piece and number == 0:
            raise MediaError(f"{path}: no frame could be decoded")
        if piece:
            yield SourceClip(f"{path.stem}-{number}", torch.stack(piece))
