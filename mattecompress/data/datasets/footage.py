"""Clips on disk: where their frames, alpha and foreground lie; read only when asked for."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mattecompress.data.frames import Size
from mattecompress.data.video import PICTURES, is_video, natural_order, read_frames, read_info
from mattecompress.errors import UserError

Role = Literal["frames", "alpha", "foreground"]


class DatasetError(UserError):
    """A folder is no data set, lacks a part of one, or holds too little for what is asked."""


@dataclass(frozen=True)
class Footage:
    """One clip: a video, a picture or a folder of pictures for each role."""

    name: str
    streams: Mapping[Role, Path]

    @cached_property
    def length(self) -> int:
        """Number of frames.

        Raises:
            DatasetError: the streams differ in it. MediaError: one cannot be read.
        """
        lengths = {path: read_info(path).frames for path in self.streams.values()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{path} has {count}" for path, count in lengths.items())
            raise DatasetError(f"{self.name}: numbers of frames differ: {counts}; copy the clip again")
        return next(iter(lengths.values()))

    def stream(
        self, role: Role, start: int = 0, count: int | None = None, size: Size | None = None
    ) -> Iterator[Tensor]:
        """Frames from `start` on, one by one, float32 in 0..1: alpha (1, H, W), the others (3, H, W) RGB.

        count: how many, all by default; there are that many.

        Raises:
            MediaError: a frame cannot be decoded (while iterating).
            DatasetError: a video ends before the frame that it announces as its last.
        """
        path = self.streams[role]
        end = self.length if count is None else start + count
        seen = start
        for frame in read_frames(path, limit=end - start, size=size, start=start):
            yield frame[:1] if role == "alpha" else frame
            seen += 1
        if seen < end:
            raise DatasetError(f"{path}: ends after {seen} frames of {self.length}; copy it again")

    def read(self, role: Role, start: int = 0, count: int | None = None, size: Size | None = None) -> Tensor:
        """What `stream` yields, in one tensor (T, C, H, W)."""
        return torch.stack(list(self.stream(role, start, count, size)))


def fingerprint(clips: Iterable[Footage]) -> str:
    """SHA-256 of the names and sizes of all files, wherever their folders lie."""
    digest = hashlib.sha256()
    for clip in clips:
        for role, path in clip.streams.items():
            files = path.iterdir() if path.is_dir() else [path]
            shown = (file for file in files if not file.name.startswith("."))
            inside = sorted((file.name, file.stat().st_size) for file in shown if file.is_file())
            digest.update(json.dumps([clip.name, role, inside]).encode())
    return digest.hexdigest()


def find_footage(place: Path) -> dict[str, Path]:
    """The videos, pictures and folders of a folder by their names without suffix, in natural order.

    Raises:
        DatasetError: two of them have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir(), key=lambda path: natural_order(path.name)):
        if path.name.startswith(".") or not (path.is_dir() or is_media(path)):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise DatasetError(
                f"{place}: {found[name].name} and {path.name} have one name: remove one of them"
            )
        found[name] = path
    return found


def is_media(path: Path) -> bool:
    """Whether `path` is a video or a picture by its suffix."""
    return is_video(path) or (path.suffix.lower() in PICTURES and not path.name.startswith("."))


def open_backgrounds(place: Path) -> tuple[Footage, ...]:
    """The backgrounds of a folder: videos, folders of pictures, and pictures, which stand still.

    Raises:
        DatasetError: there is no such folder, or nothing in it.
    """
    if not place.is_dir():
        raise DatasetError(f"{place}: no such folder; name one with pictures or videos with --backgrounds")
    found = find_footage(place)
    if not found:
        raise DatasetError(f"{place}: holds no pictures, videos or folders of pictures")
    return tuple(Footage(name, {"frames": path}) for name, path in found.items())
