"""Trimaps: what of a frame is certainly background (0) or foreground (1), and what is unknown (1/2)."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mattecompress.data.frames import MediaError, Size
from mattecompress.data.video import read_frames, read_info
from mattecompress.errors import UserError

RADIUS = 8


class TrimapError(UserError):
    """A program needs a trimap and there is none, or takes none."""


def make_trimap(alpha: Tensor, radius: int = RADIUS, inner: int | None = None) -> Tensor:
    """The trimap of a known alpha: unknown is whatever has a pixel that is neither 0 nor 1, or an edge, nearby.

    Args:
        alpha: (T,1,H,W) in 0..1.
        radius: how far nearby reaches, in pixels, along each axis.
        inner: how far it reaches into what is foreground; by default as far.

    Returns:
        (T,1,H,W) of 0, 1/2 and 1, in alpha's type.
    """
    touched, opaque = (alpha > 0).to(alpha.dtype), (alpha >= 1).to(alpha.dtype)
    possible = _spread(touched, radius)
    certain = -_spread(-opaque, radius if inner is None else inner)
    return (possible + certain) / 2


def read_trimaps(source: str, like: Path, size: Size | None, limit: int | None = None) -> Iterator[Tensor]:
    """Trimaps (1,H,W) in 0..1 from a picture, a folder of pictures or a video, for the frames of `like`.

    size: (height, width) that they are brought to, by the nearest pixel, so that no new values come about.

    Raises:
        MediaError: a file cannot be read, or the two differ in size or in number of frames.
    """
    path = Path(source)
    given, wanted = read_info(path), read_info(like)
    for name in ("height", "width", "frames"):
        have, want = getattr(given, name), getattr(wanted, name)
        if have != want:
            raise MediaError(
                f"{source}: {name} {have}, but {like} has {want}; give one trimap for each frame"
            )
    return (_nearest(frame[:1], size) for frame in islice(read_frames(path), limit))


def _nearest(frame: Tensor, size: Size | None) -> Tensor:
    return frame if size is None else F.interpolate(frame[None], size, mode="nearest-exact")[0]


def _spread(image: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(image, 2 * radius + 1, stride=1, padding=radius)
