"""Backgrounds: gradients, noise, patterns, clutter in colours like those of people, panned and crossed by movers."""

from dataclasses import dataclass

import numpy as np

from mattecompress.data import drawing
from mattecompress.data.drawing import Array, Layer, Point
from mattecompress.data.people import Wave, sample_wave

MARGIN = 1.36


@dataclass(frozen=True)
class Mover:
    """A shape that crosses the background: path in pixels, half sizes, turn, colour and kind."""

    x: Wave
    y: Wave
    half: Point
    turn: Wave
    colour: Array
    kind: str


@dataclass(frozen=True)
class Scenery:
    """A painted canvas (3, H', W') larger than the frame, the waves that move the view, and the movers."""

    canvas: Array
    pan_x: Wave
    pan_y: Wave
    zoom: Wave
    movers: tuple[Mover, ...]
    softness: float

    def frame(self, time: float, height: int, width: int) -> Array:
        """The view (3, height, width) at `time` frames."""
        zoom = float(np.clip(self.zoom.at(time), 0.85, 1.15))
        rows = self._positions(self.canvas.shape[1], height, zoom, self.pan_y.at(time))
        columns = self._positions(self.canvas.shape[2], width, zoom, self.pan_x.at(time))
        image = drawing.sample_grid(self.canvas, rows, columns)
        if not self.movers:
            return image
        layer = Layer(height, width)
        for mover in self.movers:
            centre = (mover.x.at(time), mover.y.at(time))
            _draw_shape(
                layer, mover.kind, centre, mover.half, mover.turn.at(time), mover.colour, self.softness
            )
        return np.asarray(image * (1 - layer.alpha) + layer.colour)

    @staticmethod
    def _positions(canvas: int, size: int, zoom: float, shift: float) -> Array:
        offsets = (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(zoom)
        return np.asarray(offsets + np.float32((canvas - 1) / 2 + shift))


def sample_scenery(rng: np.random.Generator, height: int, width: int, lookalikes: Array) -> Scenery:
    """A random background for frames of `height` x `width`; some shapes take a colour of `lookalikes` (n, 3)."""
    unit = min(height, width)
    tall, wide = int(np.ceil(height * MARGIN)), int(np.ceil(width * MARGIN))
    softness = max(1.0, unit / 288) * float(rng.choice([1.0, 1.6, 3.0]))
    canvas = _paint_canvas(rng, tall, wide, unit, lookalikes, softness)
    travel = float(rng.choice([0.0, 0.015, 0.08], p=[0.45, 0.3, 0.25]))
    pace = float(rng.choice([0.7, 1.5, 3.0]))
    count = int(rng.choice([0, 1, 2, 4], p=[0.6, 0.16, 0.14, 0.1]))
    return Scenery(
        canvas=canvas,
        pan_x=sample_wave(rng, 0.0, travel * width, pace),
        pan_y=sample_wave(rng, 0.0, travel * height * 0.6, pace),
        zoom=sample_wave(rng, 1.0, travel * 0.6, pace),
        movers=tuple(_sample_mover(rng, height, width, lookalikes) for _ in range(count)),
        softness=softness,
    )


def _colour(rng: np.random.Generator, lookalikes: Array, share: float) -> Array:
    if rng.random() < share:
        near: Array = lookalikes[int(rng.integers(len(lookalikes)))] + rng.normal(0, 0.06, 3)
        return np.clip(near, 0, 1).astype(np.float32)
    grey = float(rng.beta(1.2, 1.2))
    return np.clip(grey + float(rng.beta(1, 2)) * rng.uniform(-0.6, 0.6, 3), 0, 1).astype(np.float32)


def _sample_mover(rng: np.random.Generator, height: int, width: int, lookalikes: Array) -> Mover:
    unit = min(height, width)
    return Mover(
        x=sample_wave(rng, float(rng.uniform(0, width)), width * 0.4, 1.0),
        y=sample_wave(rng, float(rng.uniform(0, height)), height * 0.25, 1.0),
        half=(unit * float(rng.uniform(0.04, 0.2)), unit * float(rng.uniform(0.04, 0.3))),
        turn=sample_wave(rng, float(rng.uniform(0, 3)), 0.8),
        colour=_colour(rng, lookalikes, 0.5),
        kind=str(rng.choice(["ellipse", "box", "capsule"])),
    )


def _draw_shape(
    layer: Layer, kind: str, centre: Point, half: Point, turn: float, colour: Array, softness: float
) -> None:
    window = layer.window([centre], half[0] + half[1] + softness)
    if window is None:
        return
    if kind == "ellipse":
        distance, across, _ = drawing.ellipse(window, centre, half, turn)
    elif kind == "box":
        distance = drawing.box(window, centre, half, turn, 0.15 * min(half))
        across = (window.x - np.float32(centre[0])) / np.float32(half[0]) + 0 * window.y
    else:
        tip = (centre[0] - half[1] * float(np.sin(turn)), centre[1] + half[1] * float(np.cos(turn)))
        radius = min(half[0], half[1]) * 0.6
        distance, _, across = drawing.capsule(window, centre, tip, (radius, radius * 0.8))
    shade = np.float32(1) - np.float32(0.2) * np.clip(across, -1, 1)
    layer.over(window, drawing.coverage(distance, softness), np.clip(colour[:, None, None] * shade, 0, 1))


def _paint_canvas(
    rng: np.random.Generator, height: int, width: int, unit: int, lookalikes: Array, softness: float
) -> Array:
    image = _gradient(rng, height, width, lookalikes)
    for _ in range(int(rng.integers(0, 3))):
        image = _blotches(rng, image, lookalikes)
    if rng.random() < 0.3:
        image = _pattern(rng, image, unit, lookalikes)
    image = _clutter(rng, image, unit, lookalikes, softness)
    strength = np.float32(rng.choice([0.02, 0.1, 0.25]))
    rough = drawing.octaves(rng, height, width, float(rng.uniform(2, 8)), 6, float(rng.uniform(0.5, 0.85)))
    image = image * (1 + strength * rough) + np.float32(0.1) * strength * drawing.noise(
        rng, height, width, 6, 3
    )
    image = np.clip(image, 0, 1).astype(np.float32)
    radius = int(rng.choice([0, 0.008, 0.02, 0.05], p=[0.5, 0.2, 0.2, 0.1]) * unit)
    return drawing.box_blur(image, radius) if radius else image


def _gradient(rng: np.random.Generator, height: int, width: int, lookalikes: Array) -> Array:
    corners = np.stack([_colour(rng, lookalikes, 0.25) for _ in range(4)], axis=1).reshape(3, 2, 2)
    flat = np.float32(rng.choice([0.15, 0.5, 1.0]))
    corners = corners * flat + corners.mean(axis=(1, 2), keepdims=True) * (1 - flat)
    image = drawing.enlarge(corners, height, width)
    if rng.random() < 0.5:
        line = int(height * rng.uniform(0.45, 0.9))
        image[:, line:] = (
            image[:, line:] * np.float32(0.4) + np.float32(0.6) * _colour(rng, lookalikes, 0.2)[:, None, None]
        )
    return image


def _blotches(rng: np.random.Generator, image: Array, lookalikes: Array) -> Array:
    height, width = image.shape[1:]
    field = drawing.octaves(rng, height, width, float(rng.uniform(1.5, 10)), 4, 0.55)
    share = np.clip((field - np.float32(rng.uniform(-0.2, 0.6))) * np.float32(rng.uniform(1.5, 15)), 0, 1)
    return np.asarray(image * (1 - share) + _colour(rng, lookalikes, 0.4)[:, None, None] * share)


def _pattern(rng: np.random.Generator, image: Array, unit: int, lookalikes: Array) -> Array:
    height, width = image.shape[1:]
    x = np.arange(width, dtype=np.float32)[None, :] / unit
    y = np.arange(height, dtype=np.float32)[:, None] / unit
    turns, turn = np.float32(2 * np.pi * rng.uniform(2, 14)), float(rng.uniform(0, np.pi))
    u = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    v = y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn))
    wave = np.sin(turns * u) if rng.random() < 0.5 else np.sin(turns * u) * np.sin(turns * v)
    share = np.clip(wave * np.float32(rng.uniform(1, 8)) + np.float32(0.5), 0, 1) * np.float32(
        rng.uniform(0.2, 1)
    )
    return np.asarray(image * (1 - share) + _colour(rng, lookalikes, 0.3)[:, None, None] * share)


def _clutter(rng: np.random.Generator, image: Array, unit: int, lookalikes: Array, softness: float) -> Array:
    height, width = image.shape[1:]
    layer = Layer(height, width)
    count = int(rng.choice([0, 4, 10, 22], p=[0.15, 0.3, 0.35, 0.2]))
    upright = rng.random() < 0.6
    for _ in range(count):
        kind = str(rng.choice(["box", "ellipse", "capsule"], p=[0.5, 0.25, 0.25]))
        size = unit * float(np.exp(rng.uniform(np.log(0.03), np.log(0.4))))
        half = (size * float(rng.uniform(0.4, 1.2)), size * float(rng.uniform(0.4, 1.6)))
        turn = 0.0 if upright else float(rng.uniform(0, np.pi))
        centre = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        _draw_shape(layer, kind, centre, half, turn, _colour(rng, lookalikes, 0.45), softness)
        if kind == "box" and rng.random() < 0.5:
            inner = (half[0] * 0.8, half[1] * 0.8)
            _draw_shape(layer, kind, centre, inner, turn, _colour(rng, lookalikes, 0.3), softness)
    for _ in range(int(rng.choice([0, 1, 3], p=[0.6, 0.25, 0.15]))):
        _plant(rng, layer, unit, lookalikes)
    return np.asarray(image * (1 - layer.alpha) + layer.colour)


def _plant(rng: np.random.Generator, layer: Layer, unit: int, lookalikes: Array) -> None:
    """A tuft of strands, so that thin threads alone do not tell hair."""
    height, width = layer.alpha.shape
    count, length = int(rng.integers(60, 300)), unit * float(rng.uniform(0.15, 0.5))
    samples = int(np.clip(length / 0.8, 4, 600))
    s = np.linspace(0, 1, samples, dtype=np.float32)[None, :]
    turn = rng.normal(0, 0.7, (count, 1)).astype(np.float32)
    reach = (length * rng.uniform(0.3, 1.0, (count, 1))).astype(np.float32)
    bend = rng.normal(0, 0.5, (count, 1)).astype(np.float32)
    x = np.float32(rng.uniform(0, width)) + reach * (np.sin(turn) * s + bend * s * s)
    y = np.float32(rng.uniform(0.3, 1.0) * height) - reach * (np.cos(turn) * s - np.float32(0.4) * s * s)
    weight = np.float32(np.clip(unit * rng.uniform(0.001, 0.008), 0.15, 1.5)) * (1 - s * np.float32(0.8))
    weight = weight * reach / np.float32(samples)
    shade = rng.uniform(0.6, 1.4, (count, 1)).astype(np.float32) + 0 * s
    drawing.splat_strands(layer, x, y, weight, shade, _colour(rng, lookalikes, 0.4))
