"""Reading and writing videos (PyAV), pictures and folders of pictures (Pillow), and Y4M.

Frames are float32 (3, H, W) RGB in 0..1. PyAV and Pillow come with the extra `media` and are imported when needed.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mattecompress.data import y4m
from mattecompress.data.frames import MediaError, Size, from_bytes, resize, to_bytes
from mattecompress.errors import MissingExtraError
from mattecompress.files import atomic_path, require_empty

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mkv", ".mov")
READABLE_VIDEOS = (*VIDEOS, ".avi", ".webm", ".y4m")
QUALITY = 18
LIMITED_RANGE = 1
BT601 = 6


@dataclass(frozen=True)
class MediaInfo:
    """Size in pixels, number of frames, and frames per second (None for pictures)."""

    height: int
    width: int
    frames: int
    fps: Fraction | None


def read_info(path: Path) -> MediaInfo:
    """What a video, a picture or a folder of pictures holds.

    Raises:
        MediaError: it is missing, empty or cannot be decoded.
        MissingExtraError: the extra `media` is needed.
    """
    height, width = read_size(path)
    if _is_pictures(path):
        return MediaInfo(height, width, len(_list_pictures(path)), None)
    if path.suffix.lower() == ".y4m":
        return MediaInfo(height, width, y4m.count_frames(path), y4m.read_header(path).fps)
    with _av().open(path) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    return MediaInfo(height, width, count, None if fps is None else Fraction(fps))


def read_size(path: Path) -> Size:
    """(height, width) of the first frame; raises as `read_info`."""
    height, width = next(read_frames(path, limit=1)).shape[1:]
    return height, width


def read_frames(
    path: Path, limit: int | None = None, size: Size | None = None, start: int = 0
) -> Iterator[Tensor]:
    """The frames of a video, a picture, or a folder of pictures in natural order of their names.

    Turned videos and photographs come upright. Transparency is dropped. Grey pictures of 16 and 32 bits are white at
    65535, those of floats at 1.

    Args:
        path: the file or folder.
        limit: stop after that many frames, at least 1.
        size: (height, width) to resize every frame to.
        start: leave that many frames out; pictures are not opened for it, a video is decoded from its beginning.

    Returns:
        An iterator of float32 (3, H, W) RGB in 0..1, all of one size, at least one.

    Raises:
        MediaError: the path is missing (at once); empty or cannot be decoded (while iterating).
        MissingExtraError: the extra `media` is needed (at once).
        ValueError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: ask for at least 1 frame")
    if not path.exists():
        raise MediaError(f"{path}: no such file or folder")
    if _is_pictures(path):
        frames = _decode_pictures(_list_pictures(path)[start:], _pillow("Image"), _pillow("ImageOps"))
    elif path.suffix.lower() == ".y4m":
        frames = islice(y4m.read_y4m(path), start, None)
    else:
        frames = islice(_decode_video(path, _av()), start, None)
    return _checked(path, islice(frames, limit), size)


def is_video(path: Path) -> bool:
    """Whether `path` is a video by its suffix; names that begin with a dot are none."""
    return path.suffix.lower() in READABLE_VIDEOS and not path.name.startswith(".")


def natural_order(name: str) -> list[str | int]:
    """A key that sorts 2 before 10: text and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def write_frames(path: Path, frames: Iterable[Tensor], fps: Fraction | float = 25) -> None:
    """Write a clip, float (T, C, H, W) in 0..1 or an iterable of (C, H, W), in the format that `path` names.

    Raises:
        MediaError: as `open_writer`, or there is no frame, or there are several for one picture.
        UnwritableError: the file cannot be written.
    """
    with open_writer(path, fps) as writer:
        for frame in frames:
            writer.write(frame)


def open_writer(path: Path, fps: Fraction | float = 25) -> "FrameWriter":
    """The writer for the suffix of `path`.

    .mp4, .mkv, .mov and .y4m are videos, .png, .jpg and their like take one frame, and a name without suffix is a
    folder of PNG files.

    Raises:
        MediaError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return VideoWriter(path, fps)
    if suffix == ".y4m":
        return Y4mWriter(path, fps)
    if suffix in PICTURES:
        return PictureWriter(path)
    if not suffix:
        return FolderWriter(path)
    known = ", ".join((*VIDEOS, ".y4m", *PICTURES))
    raise MediaError(
        f"{path}: cannot write {suffix}: use {known}, or a name without suffix for a folder of PNG files"
    )


class FrameWriter:
    """A context manager that takes frames of one size; `path` appears, whole, when the context closes.

    After an error nothing is left behind.

    Raises:
        MediaError: on closing, when there was no frame.
    """

    channels: tuple[int, ...] = (1, 3)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._shape: tuple[int, ...] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            if self.count == 0:
                raise MediaError(f"{self.path}: there is no frame to write")

    def write(self, frame: Tensor) -> None:
        """Add a frame, float (C, H, W) in 0..1, stored as floor(255 x).

        Raises:
            ValueError: the number of channels does not fit, or the shape differs from that of the first frame.
            UnwritableError: the file cannot be written.
        """
        shape = tuple(frame.shape)
        if self._shape is None:
            if len(shape) != 3 or shape[0] not in self.channels:
                raise ValueError(f"{self.path}: a frame is (C, H, W) with C in {self.channels}, not {shape}")
            self._shape = shape
            self._start(frame)
        if shape != self._shape:
            raise ValueError(f"{self.path}: frame {self.count} is {shape}, the first is {self._shape}")
        self._add(frame.detach().cpu())
        self.count += 1

    def _start(self, frame: Tensor) -> None:
        """Prepare for frames like `frame`."""

    def _add(self, frame: Tensor) -> None:
        raise NotImplementedError


class VideoWriter(FrameWriter):
    """Writes an H.264 video; frames are (3, H, W) RGB or (1, H, W) grey.

    Even sizes are stored as 4:2:0, odd ones as 4:4:4, both in BT.601, limited range.

    Args:
        path: the .mp4, .mkv or .mov file; its folder is made.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: Fraction | float = 25) -> None:
        super().__init__(path)
        self._fps = _rate(fps)

    def _start(self, frame: Tensor) -> None:
        self._av = _av()
        height, width = frame.shape[1:]
        self._container = self._stack.enter_context(self._av.open(self._temporary, "w"))
        self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": str(QUALITY)})
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        self._stream.codec_context.color_range = LIMITED_RANGE
        self._stream.codec_context.colorspace = BT601
        self._stack.push(self._finish)

    def _add(self, frame: Tensor) -> None:
        picture = to_bytes(frame).expand(3, -1, -1).permute(1, 2, 0).contiguous()
        self._encode(self._av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24"))

    def _finish(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._encode(None)

    def _encode(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except self._av.error.FFmpegError as error:
            raise MediaError(f"{self.path}: cannot encode frame {self.count} ({_reason(error)})") from error


class Y4mWriter(FrameWriter):
    """Writes an uncompressed .y4m video; arguments as `VideoWriter`."""

    def __init__(self, path: Path, fps: Fraction | float = 25) -> None:
        super().__init__(path)
        self._fps = _rate(fps)

    def _start(self, frame: Tensor) -> None:
        self._file = self._stack.enter_context(self._temporary.open("wb"))
        self._file.write(y4m.header_line(frame, self._fps))

    def _add(self, frame: Tensor) -> None:
        self._file.write(y4m.frame_bytes(frame))


class PictureWriter(FrameWriter):
    """Writes one picture in the format of its suffix: (1, H, W) grey, (3, H, W) RGB or (4, H, W) RGBA.

    Raises:
        MediaError: there is a second frame, or the format cannot hold the channels.
    """

    channels = (1, 3, 4)

    def _add(self, frame: Tensor) -> None:
        if self.count:
            raise MediaError(
                f"{self.path}: holds one frame: use .mp4, .y4m, or a name without suffix for a folder"
            )
        pixels = to_bytes(frame).permute(1, 2, 0).contiguous().numpy()
        picture = _pillow("Image").fromarray(pixels[:, :, 0] if len(frame) == 1 else pixels)
        try:
            picture.save(self._temporary)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise MediaError(f"{self.path}: cannot be written ({_reason(error)})") from error


class FolderWriter(FrameWriter):
    """Writes 000000.png, 000001.png and so on into a folder; frames as `PictureWriter`.

    Raises:
        UnwritableError: on opening, where the folder holds something.
    """

    channels = (1, 3, 4)

    def __enter__(self) -> Self:
        require_empty(self.path)
        return super().__enter__()

    def _start(self, frame: Tensor) -> None:
        self._temporary.mkdir()

    def _add(self, frame: Tensor) -> None:
        with PictureWriter(self._temporary / f"{self.count:06d}.png") as picture:
            picture.write(frame)


def _checked(path: Path, frames: Iterator[Tensor], size: Size | None) -> Iterator[Tensor]:
    shape = None
    for number, frame in enumerate(frames):
        picture = frame if size is None else resize(frame, size)
        if shape is not None and picture.shape != shape:
            sizes = f"{picture.shape[1]}x{picture.shape[2]}, the first is {shape[1]}x{shape[2]}"
            raise MediaError(f"{path}: frame {number} is {sizes}: give a size to bring them together")
        shape = picture.shape
        yield picture
    if shape is None:
        raise MediaError(f"{path}: holds no frames")


def _is_pictures(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in PICTURES


def _list_pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not found:
        raise MediaError(f"{path}: the folder holds no pictures ({', '.join(PICTURES)})")
    return sorted(found, key=lambda p: natural_order(p.name))


def _decode_pictures(paths: list[Path], image: Any, image_ops: Any) -> Iterator[Tensor]:
    for path in paths:
        try:
            with image.open(path) as file:
                picture = image_ops.exif_transpose(file)
                deep = picture.mode.startswith(("I", "F"))
                pixels = np.array(picture if deep else picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise MediaError(f"{path}: not a picture that can be decoded ({_reason(error)})") from error
        if deep:
            yield torch.from_numpy(_grey(path, pixels)).repeat(3, 1, 1)
        else:
            yield from_bytes(torch.from_numpy(pixels)).permute(2, 0, 1).contiguous()


def _grey(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    """0..1 from floats, or from integers up to 65535; raises MediaError where others are among them."""
    white = 1 if values.dtype.kind == "f" else 65535
    if not ((values >= 0) & (values <= white)).all():
        raise MediaError(
            f"{path}: holds values from {values.min():g} to {values.max():g}: bring them to 0..{white}"
        )
    return values.astype(np.float32) / np.float32(white)


def _decode_video(path: Path, av: ModuleType) -> Iterator[Tensor]:
    number = 0
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: holds no video")
            for picture in container.decode(video=0):
                pixels = from_bytes(torch.from_numpy(picture.to_ndarray(format="rgb24"))).permute(2, 0, 1)
                yield torch.rot90(pixels, round(picture.rotation / 90), (1, 2)).contiguous()
                number += 1
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be decoded at frame {number} ({_reason(error)})") from error


def _rate(fps: Fraction | float) -> Fraction:
    if not fps > 0:
        raise ValueError(f"{fps} frames per second: expected more than 0")
    return Fraction(fps).limit_denominator(1001)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "media") from error
    module: ModuleType = av
    return module


def _pillow(part: str) -> Any:
    try:
        import PIL
    except ImportError as error:
        raise MissingExtraError("pillow", "media") from error
    return import_module(f"{PIL.__name__}.{part}")
