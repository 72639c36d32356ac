"""Y4M, uncompressed video; needs no extra. The built executables read and write it as well, 4:2:2 excepted.

Written: 8 bits, 4:4:4 (`C444`) for RGB or `Cmono` for one channel, full range (`XCOLORRANGE=FULL`), BT.601:

    Y  = 0.299 R + 0.587 G + 0.114 B
    Cb = 128 + (B - Y) / 1.772
    Cr = 128 + (R - Y) / 1.402

rounded to nearest. Greys survive exactly, other colours within 2 of 255. Read: also 4:2:0 and 4:2:2 (chroma repeated)
and limited range, which is what the absence of `XCOLORRANGE=FULL` means.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mattecompress.data.frames import MediaError, from_bytes, to_bytes

SUBSAMPLING = {
    "mono": None,
    "444": (1, 1),
    "422": (1, 2),
    "420": (2, 2),
    "420jpeg": (2, 2),
    "420mpeg2": (2, 2),
    "420paldv": (2, 2),
}
LONGEST_HEADER = 1024


@dataclass(frozen=True)
class Header:
    """What the first line of a Y4M file says; `chroma` is the step (rows, columns) of chroma, None without."""

    height: int
    width: int
    fps: Fraction
    chroma: tuple[int, int] | None
    full_range: bool

    @property
    def plane_sizes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each plane of a frame."""
        if self.chroma is None:
            return ((self.height, self.width),)
        small = (-(-self.height // self.chroma[0]), -(-self.width // self.chroma[1]))
        return ((self.height, self.width), small, small)

    @property
    def bytes_per_frame(self) -> int:
        """Bytes of the planes of a frame."""
        return sum(rows * columns for rows, columns in self.plane_sizes)


def read_header(path: Path) -> Header:
    """The header of a Y4M file.

    Raises:
        MediaError: the file is not a Y4M video of a kind listed above.
    """
    with _open(path) as file:
        return _parse_header(path, file)


def count_frames(path: Path) -> int:
    """How many whole frames the file holds."""
    with _open(path) as file:
        header = _parse_header(path, file)
        count = 0
        while _next_frame(path, file, header, count) is not None:
            count += 1
        return count


def read_y4m(path: Path) -> Iterator[Tensor]:
    """The frames, float32 (3, H, W) RGB in 0..1; raises MediaError as `read_header`, and where a frame is cut off."""
    with _open(path) as file:
        header = _parse_header(path, file)
        count = 0
        while (data := _next_frame(path, file, header, count)) is not None:
            yield _to_rgb(data, header)
            count += 1


def header_line(frame: Tensor, fps: Fraction) -> bytes:
    """The first line of a file of frames like `frame`, (3, H, W) or (1, H, W)."""
    channels, height, width = frame.shape
    kind = "mono" if channels == 1 else "444"
    rate = f"{fps.numerator}:{fps.denominator}"
    return f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C{kind} XCOLORRANGE=FULL\n".encode()


def frame_bytes(frame: Tensor) -> bytes:
    """One frame, float (3, H, W) or (1, H, W) in 0..1, of which floor(255 x) is stored."""
    picture = to_bytes(frame)
    planes = picture if len(frame) == 1 else _to_ycbcr(picture)
    return b"FRAME\n" + planes.contiguous().numpy().tobytes()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise MediaError(f"{path}: cannot be opened ({error.strerror})") from error


def _parse_header(path: Path, file: BinaryIO) -> Header:
    words = file.readline(LONGEST_HEADER).decode("ascii", errors="replace").split()
    if not words or words[0] != "YUV4MPEG2":
        raise MediaError(f"{path}: not a Y4M video: its first line does not begin with YUV4MPEG2")
    fields = {word[0]: word[1:] for word in words[1:] if word[0] != "X"}
    kind = fields.get("C", "420jpeg")
    if kind not in SUBSAMPLING:
        raise MediaError(
            f"{path}: Y4M colour space C{kind} is not supported: write C444, C422, C420 or Cmono"
        )
    try:
        height, width = int(fields["H"]), int(fields["W"])
        fps = Fraction(fields.get("F", "25:1").replace(":", "/"))
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise MediaError(
            f"{path}: the Y4M header lacks a valid size or frame rate: {' '.join(words)}"
        ) from error
    if min(height, width) < 1:
        raise MediaError(f"{path}: the Y4M header gives the size {height}x{width}")
    return Header(height, width, fps, SUBSAMPLING[kind], "XCOLORRANGE=FULL" in words)


def _next_frame(path: Path, file: BinaryIO, header: Header, number: int) -> bytes | None:
    line = file.readline(LONGEST_HEADER)
    if not line:
        return None
    left = os.fstat(file.fileno()).st_size - file.tell()
    if not line.startswith(b"FRAME") or left < header.bytes_per_frame:
        raise MediaError(f"{path}: damaged or cut off in frame {number}")
    return file.read(header.bytes_per_frame)


def _to_ycbcr(picture: Tensor) -> Tensor:
    red, green, blue = picture.double()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack((luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402))
    return planes.round().clamp(0, 255).to(torch.uint8)


def _to_rgb(data: bytes, header: Header) -> Tensor:
    values, planes = torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.float64)), []
    for rows, columns in header.plane_sizes:
        planes.append(values[: rows * columns].view(rows, columns))
        values = values[rows * columns :]
    luma = planes[0] if header.full_range else (planes[0] - 16) * (255 / 219)
    if header.chroma is None:
        return _scaled(luma.expand(3, -1, -1))
    down, across = header.chroma
    wide = [p.repeat_interleave(down, 0).repeat_interleave(across, 1) for p in planes[1:]]
    blueness, redness = (p[: header.height, : header.width] - 128 for p in wide)
    if not header.full_range:
        blueness, redness = blueness * (255 / 224), redness * (255 / 224)
    red, blue = luma + 1.402 * redness, luma + 1.772 * blueness
    return _scaled(torch.stack((red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue)))


def _scaled(picture: Tensor) -> Tensor:
    """0..255 to the float32 of the nearest byte."""
    return from_bytes(picture.round().clamp(0, 255))
