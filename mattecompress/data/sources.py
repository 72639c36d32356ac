"""Clips by name: a data set, a video, a folder of videos or pictures, or clips made from a seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mattecompress.data.clips import MIN_SIDE, procedural_clip
from mattecompress.data.datasets.footage import Footage
from mattecompress.data.datasets.layouts import find_dataset, split_source
from mattecompress.data.frames import MediaError, Size
from mattecompress.data.trimaps import TrimapError, make_trimap
from mattecompress.data.video import is_video, read_frames, read_size
from mattecompress.interface import TRIMAP, Clip, frame_node, takes_trimap
from mattecompress.program import Program

DEFAULT_SIZE = (144, 256)
DEFAULT_FRAMES = 24


@dataclass(frozen=True)
class SourceClip:
    """Frames (T,3,H,W) float32 in 0..1; alpha (T,1,H,W) and foreground (T,3,H,W) where they are known."""

    name: str
    frames: Tensor
    alpha: Tensor | None = None
    foreground: Tensor | None = None


def load_clips(source: str, size: Size | None, clips: int | None, frames: int | None) -> Iterator[SourceClip]:
    """Up to `clips` clips of up to `frames` frames each, read one after the other as they are asked for.

    source: a data set of composed clips, as its folder or `LAYOUT:FOLDER`; a video file (consecutive pieces of it
        are the clips), a folder of videos (one clip each), a picture or a folder of pictures (one clip); or
        `procedural` / `procedural:SEED`.
    size: (height, width) that frames are resized to; None keeps them as they are (144x256 for procedural clips).
    clips: None takes all of a data set, one of anything else.
    frames: None takes all there are, 24 of procedural clips.

    Raises:
        DatasetError: a data set lacks a part, or holds foregrounds only.
        MediaError: nothing is there, it cannot be decoded, or `size` is too small for a procedural clip.
    """
    seed = procedural_seed(source)
    if seed is not None:
        return (
            _make_clip(seed, index, frames or DEFAULT_FRAMES, size or DEFAULT_SIZE)
            for index in range(clips or 1)
        )
    if dataset := find_dataset(source):
        return (_load_footage(footage, size, frames) for footage in dataset.composed[:clips])
    path = Path(source)
    if videos := _videos_in(path):
        return (_read_clip(video, size, frames) for video in videos[: clips or 1])
    if is_video(path) and clips and clips > 1 and frames:
        return _cut(path, size, clips, frames)
    return (_read_clip(only, size, frames) for only in [path])


def procedural_seed(source: str) -> int | None:
    """The seed of `procedural` (0) or `procedural:SEED`; None where `source` is a path.

    Raises:
        MediaError: the seed is no number.
    """
    kind, _, seed = source.partition(":")
    if kind != "procedural":
        return None
    if not seed.isdecimal() and source != kind:
        raise MediaError(f"'{source}': expected a number behind the colon, such as procedural:7")
    return int(seed or 0)


def source_size(source: str) -> Size:
    """(height, width) of the first frame of what `load_clips` would read; 144x256 for procedural clips.

    Raises:
        DatasetError, MediaError: as `load_clips`.
    """
    if procedural_seed(source) is not None:
        return DEFAULT_SIZE
    if dataset := find_dataset(source):
        return read_size(dataset.composed[0].streams["frames"])
    path = Path(source)
    return read_size(next(iter(_videos_in(path)), path))


def absolute_source(source: str) -> str:
    """The same source for another working folder."""
    layout, path = split_source(source)
    if not path.exists():
        return source
    return f"{layout.name}:{path.resolve()}" if layout else str(path.resolve())


def clip_inputs(program: Program, clip: SourceClip) -> Clip:
    """What a clip feeds to the program: its frames, or also the trimap of its alpha.

    Raises:
        TrimapError: the program takes a trimap, and the clip's alpha is unknown.
    """
    if not takes_trimap(program):
        return clip.frames
    if clip.alpha is None:
        raise TrimapError(
            f"{program.name} takes a trimap, and the alpha of {clip.name} that it could be made from is unknown: "
            "use procedural clips or a data set with alpha"
        )
    return {str(frame_node(program).target): clip.frames, TRIMAP: make_trimap(clip.alpha)}


def _videos_in(path: Path) -> list[Path]:
    return sorted(filter(is_video, path.iterdir())) if path.is_dir() else []


def _load_footage(footage: Footage, size: Size | None, frames: int | None) -> SourceClip:
    count = min(frames or footage.length, footage.length)
    whole = {role: footage.read(role, count=count, size=size) for role in footage.streams}
    return SourceClip(footage.name, whole["frames"], whole["alpha"], whole.get("foreground"))


def _make_clip(seed: int, index: int, frames: int, size: Size) -> SourceClip:
    if min(size) < MIN_SIDE:
        raise MediaError(
            f"procedural clips have sides of at least {MIN_SIDE}, not {size[0]}x{size[1]}: "
            "give a video, or capture another size"
        )
    clip = procedural_clip(seed, index, frames, *size)
    return SourceClip(f"procedural-{seed}-{index}", clip.frames, clip.alpha, clip.foreground)


def _read_clip(path: Path, size: Size | None, frames: int | None) -> SourceClip:
    return SourceClip(path.stem, torch.stack(list(read_frames(path, limit=frames, size=size))))


def _cut(path: Path, size: Size | None, clips: int, frames: int) -> Iterator[SourceClip]:
    stream = read_frames(path, limit=clips * frames, size=size)
    for number in range(clips):
        piece = list(islice(stream, frames))
        if not piece and number == 0:
            raise MediaError(f"{path}: no frame could be decoded")
        if piece:
            yield SourceClip(f"{path.stem}-{number}", torch.stack(piece))
