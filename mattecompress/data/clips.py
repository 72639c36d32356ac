"""Matting clips made from a seed: people with hair-fine edges before moving scenery, with exact alpha and colours.

I = F * a + B * (1 - a) holds to the last bit for every pixel of every frame: the foreground F is defined also where
the alpha a is 0, and light, tone and sensor noise act on F and B before they are composed.

Only numpy draws (signed distances and area splats instead of a raster library), so training and the demo need no
extra, and every frame is a function of seed, index, its number and the size alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mattecompress.data import drawing
from mattecompress.data.drawing import Array, Layer
from mattecompress.data.figures import draw_person
from mattecompress.data.people import Person, Wave, sample_person, sample_wave
from mattecompress.data.scenery import sample_scenery

MIN_SIDE = 16


@dataclass(frozen=True)
class Clip:
    """A clip with its truth; float32 RGB in 0..1, `alpha` (T, 1, H, W), the rest (T, 3, H, W)."""

    frames: Tensor
    alpha: Tensor
    foreground: Tensor
    background: Tensor


@dataclass(frozen=True)
class _Camera:
    gain: Wave
    tone: float
    tint: Array
    shift: float
    vignette: Array | None
    grain: float
    coarse_grain: bool
    exposures: int

    def see(self, image: Array, time: float) -> Array:
        """Light and tone: gain and tint, then the curve x + c x (1 - x)."""
        lit = image * (self.tint * np.float32(self.gain.at(time))) + np.float32(self.shift)
        lit = np.clip(lit if self.vignette is None else lit * self.vignette, 0, 1)
        return np.asarray(lit + np.float32(self.tone) * lit * (1 - lit))


def procedural_clip(seed: int, index: int, frames: int, height: int, width: int) -> Clip:
    """Clip number `index` of the endless collection `seed`.

    Frame t is the same whatever `frames` is. The same arguments give the same bytes with any number of threads.

    Args:
        seed: non-negative; names the collection.
        index: non-negative; the clip's number in it.
        frames: how many frames from the first, at least 1.
        height: of a frame in pixels, at least 16.
        width: of a frame in pixels, at least 16.

    Raises:
        ValueError: an argument is out of range.
    """
    if seed < 0 or index < 0 or frames < 1 or min(height, width) < MIN_SIDE:
        raise ValueError(
            f"clip {index} of seed {seed} with {frames} frames of {height}x{width}: seed and index must not be "
            f"negative, frames at least 1 and sides at least {MIN_SIDE}"
        )
    rng = np.random.default_rng([seed, index, 0])
    people = [sample_person(rng, height, width) for _ in range(2 if rng.random() < 0.15 else 1)]
    lookalikes = np.stack([c for p in people for c in (p.skin, p.hair.colour, p.top.tile.mean(axis=(1, 2)))])
    scenery = sample_scenery(rng, height, width, lookalikes)
    camera = _sample_camera(rng, height, width)
    shape = (frames, 3, height, width)
    foreground, background = np.empty(shape, np.float32), np.empty(shape, np.float32)
    alpha = np.empty((frames, 1, height, width), np.float32)
    for t in range(frames):
        grain = _grain(np.random.default_rng([seed, index, 1, t]), camera, height, width)
        colour, alpha[t, 0] = _expose(people, camera.exposures, t, height, width)
        foreground[t] = np.clip(camera.see(colour, t) + grain, 0, 1)
        background[t] = np.clip(camera.see(scenery.frame(t, height, width), t) + grain, 0, 1)
    composite = foreground * alpha + background * (1 - alpha)
    return Clip(*(torch.from_numpy(array) for array in (composite, alpha, foreground, background)))


def _expose(people: list[Person], exposures: int, t: int, height: int, width: int) -> tuple[Array, Array]:
    """Foreground colour and alpha of frame t: the mean of `exposures` moments within half a frame."""
    total = Layer(height, width)
    for moment in range(exposures):
        layer = Layer(height, width)
        for person in people:
            draw_person(layer, person, t + 0.5 * moment / exposures)
        total.colour += layer.colour / np.float32(exposures)
        total.alpha += layer.alpha / np.float32(exposures)
    return drawing.fill_outside(total, people[-1].skin), np.clip(total.alpha, 0, 1)


def _sample_camera(rng: np.random.Generator, height: int, width: int) -> _Camera:
    vignette = None
    if rng.random() < 0.3:
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        vignette = 1 - np.float32(rng.uniform(0.05, 0.3)) * (x * x + y * y)
    return _Camera(
        gain=sample_wave(rng, float(rng.uniform(0.6, 1.2)), float(rng.choice([0.0, 0.03, 0.1])), 2.0),
        tone=float(rng.uniform(-0.5, 0.7)),
        tint=rng.uniform(0.85, 1.12, (3, 1, 1)).astype(np.float32),
        shift=float(rng.choice([0.0, 0.03, 0.08])),
        vignette=vignette,
        grain=float(rng.choice([0.0, 0.006, 0.015, 0.04], p=[0.3, 0.3, 0.25, 0.15])),
        coarse_grain=bool(rng.random() < 0.4),
        exposures=3 if rng.random() < 0.12 else 1,
    )


def _grain(rng: np.random.Generator, camera: _Camera, height: int, width: int) -> Array:
    if camera.grain == 0:
        return np.zeros((1, 1, 1), np.float32)
    if camera.coarse_grain:
        grid = rng.standard_normal((1, height // 2 + 1, width // 2 + 1), np.float32)
        return drawing.enlarge(grid, height, width) * np.float32(camera.grain)
    return rng.standard_normal((3, height, width), np.float32) * np.float32(camera.grain)
