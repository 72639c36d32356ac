"""Frames as tensors: bytes and back, size, composition, and the error of pictures and videos that cannot be used."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mattecompress.errors import UserError

Size = tuple[int, int]


class MediaError(UserError):
    """A picture or video is missing, empty, damaged, or of a kind that cannot be read or written."""


def to_bytes(frame: Tensor) -> Tensor:
    """0..1 to uint8 by truncation, floor(255 x), as the published evaluation stores mattes; values are clamped."""
    return (frame.clamp(0, 1) * 255).to(torch.uint8)


def from_bytes(frame: Tensor) -> Tensor:
    """uint8 to float32 in 0..1, x / 255; `to_bytes` gives the bytes back."""
    return frame.to(torch.float32) / 255


def resize(frame: Tensor, size: Size) -> Tensor:
    """A frame (C, H, W) in another size (height, width): bilinear, averaging over the area when it shrinks."""
    if tuple(frame.shape[-2:]) == tuple(size):
        return frame
    return interpolate(frame[None], size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)


def composite(alpha: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """F a + B (1 - a).

    Args:
        alpha: (..., 1, H, W) in 0..1.
        foreground: (..., 3, H, W).
        background: a colour (3,) or a picture (..., 3, H, W).
    """
    behind = background[:, None, None] if background.ndim == 1 else background
    return foreground * alpha + behind * (1 - alpha)
