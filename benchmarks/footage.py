"""Clips to calibrate on and clips to test on: pictures with mattes moved before drawn scenery, and a recorded video.

The folder of data holds `alphamatting/{input,gt}/GTxx.png` (alphamatting.com) and `clips/dancers.mp4`. Pictures 02 to
14 and the video's first half calibrate, 16 to 26 and its second half test: no picture, background or frame is in
both. A composite has the true alpha; the video has none, so a float program's stands in for it.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.data.drawing import Layer, fill_outside
from mattecompress.data.frames import composite
from mattecompress.data.people import sample_wave
from mattecompress.data.scenery import sample_scenery
from mattecompress.data.sources import SourceClip
from mattecompress.data.video import read_frames

CALIBRATION, TEST = range(2, 15, 2), range(16, 27, 2)
COMPOSITE_FRAMES, VIDEO_FRAMES, PIECE = 8, 48, 12
OPAQUE, PACE = 0.95, 2.0


def calibration_clips(data: Path, size: tuple[int, int], seed: int = 0) -> list[SourceClip]:
    """Seven composites of 8 frames, then the video's first 48 frames in pieces of 12; frames of `size`."""
    video = read_video(data, size)[:VIDEO_FRAMES].split(PIECE)
    pieces = [SourceClip(f"dancers-{number}", frames) for number, frames in enumerate(video)]
    return [*composites(data, CALIBRATION, COMPOSITE_FRAMES, size, seed), *pieces]


def test_clips(data: Path, size: tuple[int, int], seed: int = 0) -> list[SourceClip]:
    """Six composites of 12 frames, then the video's last 48 frames in one; frames of `size`."""
    video = SourceClip("dancers", read_video(data, size)[-VIDEO_FRAMES:])
    return [*composites(data, TEST, PIECE, size, seed), video]


def read_video(data: Path, size: tuple[int, int]) -> Tensor:
    """The 96 frames, (96,3,H,W)."""
    return torch.stack(list(islice(read_frames(data / "clips/dancers.mp4", size=size), 2 * VIDEO_FRAMES)))


def composites(
    data: Path, numbers: Sequence[int], frames: int, size: tuple[int, int], seed: int
) -> list[SourceClip]:
    """A clip for each numbered picture: what its matte cuts out sways before scenery of its own."""
    return [_composite(data, number, frames, size, seed) for number in numbers]


def _composite(data: Path, number: int, frames: int, size: tuple[int, int], seed: int) -> SourceClip:
    rng = np.random.default_rng([seed, number])
    name, (height, width) = f"GT{number:02d}", size
    alpha, foreground = _cut_out(data, name, height)
    colour = (foreground * alpha).sum((1, 2)) / alpha.sum()
    scenery = sample_scenery(rng, height, width, colour.numpy()[None])
    across, down, zoom = (
        sample_wave(rng, middle, reach, PACE)
        for middle, reach in ((rng.uniform(-0.15, 0.15), 0.1), (0.06, 0.02), (1.1, 0.05))
    )
    views = [
        _seen(alpha, foreground, size, zoom.at(t), (across.at(t), down.at(t)))
        for t in map(float, range(frames))
    ]
    background = torch.stack([torch.from_numpy(scenery.frame(t, height, width)) for t in range(frames)])
    alphas, colours = (torch.stack(part) for part in zip(*views, strict=True))
    return SourceClip(name, composite(alphas, colours, background.clamp(0, 1)), alphas, colours)


def _cut_out(data: Path, name: str, height: int) -> tuple[Tensor, Tensor]:
    """Alpha (1,h,w) and colours (3,h,w) of a picture as high as the frame; colours spread from where it is opaque."""
    image, matte = (
        next(read_frames(data / "alphamatting" / part / f"{name}.png")) for part in ("input", "gt")
    )
    size = (height, round(image.shape[2] * height / image.shape[1]))
    image, matte = (
        F.interpolate(x[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        for x in (image, matte[:1])
    )
    solid = Layer(*size)
    solid.alpha = (matte[0] > OPAQUE).float().numpy()
    solid.colour = image.numpy() * solid.alpha
    spread = torch.from_numpy(fill_outside(solid, image.mean((1, 2)).numpy()))
    return matte, torch.lerp(spread, image, matte)


def _seen(
    alpha: Tensor, foreground: Tensor, size: tuple[int, int], zoom: float, shift: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Alpha (1,H,W) and colours (3,H,W) in a frame, moved right and down by shares of its size."""
    height, width = size
    stretch = width / height * alpha.shape[1] / alpha.shape[2]
    across, down = shift
    turn = torch.tensor([[stretch / zoom, 0.0, -2 * stretch * across], [0.0, 1 / zoom, -2 * down]])
    grid = F.affine_grid(turn[None], [1, 1, height, width], align_corners=False)
    matte = F.grid_sample(alpha[None], grid, padding_mode="zeros", align_corners=False)
    colours = F.grid_sample(foreground[None], grid, padding_mode="border", align_corners=False)
    return matte[0].clamp(0, 1), colours[0].clamp(0, 1)
