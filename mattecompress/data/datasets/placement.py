"""Where a picture lies in a frame: fitted, cut to cover it, or in motion.

The motion of pictures (rules of RVM's test sets): an affine map goes linearly from one random placement to another,

    rotation +-10 degrees, shift +-0.1 of a side, growth +-0.1, shear +-5 degrees along both axes,

all of them times one random strength in 0..1. Reconstructed where the rules are silent: strength is uniform; the map
turns about the centre, x' = (1 + growth) R(rotation) S(shear) x + shift, is sampled bilinearly, with 0 outside.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from mattecompress.data.drawing import Array
from mattecompress.data.frames import Size, resize

LIMITS = np.array([10, 0.1, 0.1, 0.1, 5, 5])


@dataclass(frozen=True)
class Motion:
    """Placements at the beginning and the end: rotation, shift right, shift down, growth, shear across, shear down."""

    begin: Array
    end: Array

    def move(self, picture: Tensor, progress: float) -> Tensor:
        """A picture (C, H, W) where it is at `progress`, 0 at the beginning and 1 at the end."""
        placement = (1 - progress) * self.begin + progress * self.end
        grid = torch.from_numpy(_places(placement, *picture.shape[-2:])).to(picture.dtype)
        return grid_sample(picture[None], grid[None], mode="bilinear", align_corners=False)[0].clamp(0, 1)


def sample_motion(rng: np.random.Generator) -> Motion:
    """A random motion."""
    strength = rng.random()
    begin, end = rng.uniform(-1, 1, (2, len(LIMITS))) * LIMITS * strength
    return Motion(begin, end)


def fit_inside(picture: Tensor, size: Size) -> Tensor:
    """A picture (C, H, W) with its longest side made to fit `size` (height, width), centred, 0 around it."""
    height, width = picture.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    above, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    margins = (left, size[1] - inner[1] - left, above, size[0] - inner[0] - above)
    return pad(resize(picture, inner), margins)


def cover(picture: Tensor, size: Size, zoom: float = 1, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """A picture (C, H, W) scaled to cover `size` (height, width), then by `zoom`, at least 1, and cut.

    place: where it is cut, down and across: 0 keeps the upper or left side, 0.5 the centre.
    """
    height, width = picture.shape[-2:]
    scale = max(size[0] / height, size[1] / width) * zoom
    outer = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    top, left = (round((large - small) * at) for large, small, at in zip(outer, size, place, strict=True))
    return resize(picture, outer)[:, top : top + size[0], left : left + size[1]]


def _places(placement: Array, height: int, width: int) -> Array:
    """Where each pixel's value comes from, float64 (H, W, 2) in the units of `grid_sample`."""
    rotation, right, down, growth, across, along = placement
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, np.tan(np.deg2rad(across))], [np.tan(np.deg2rad(along)), 1]])
    (a, b), (c, d) = np.linalg.inv((1 + growth) * turn @ shear)
    x = (np.arange(width) - (width - 1) / 2 - right * width)[None, :]
    y = (np.arange(height) - (height - 1) / 2 - down * height)[:, None]
    return np.stack([(a * x + b * y) * (2 / width), (c * x + d * y) * (2 / height)], axis=-1)
