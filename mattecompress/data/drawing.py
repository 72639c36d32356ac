"""Anti-aliased drawing with numpy: signed distances, thin strands, smooth noise, tiled textures.

Coordinates are pixels, x right and y down, with pixel centres at half integers. Images are float32, channels
first. Only elementwise numpy is used, so the bytes do not depend on the number of threads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Point = tuple[float, float]


@dataclass(frozen=True)
class Window:
    """A rectangle of a layer: its slices and the coordinates of its pixel centres, (1, w) and (h, 1)."""

    rows: slice
    columns: slice
    x: Array
    y: Array


class Layer:
    """Colour (3, H, W) premultiplied by coverage, and that coverage (H, W); empty at first."""

    def __init__(self, height: int, width: int) -> None:
        self.colour = np.zeros((3, height, width), np.float32)
        self.alpha = np.zeros((height, width), np.float32)
        self.x = (np.arange(width, dtype=np.float32) + np.float32(0.5))[None, :]
        self.y = (np.arange(height, dtype=np.float32) + np.float32(0.5))[:, None]

    def window(self, points: list[Point], margin: float) -> Window | None:
        """The visible part of the bounding box of `points` grown by `margin` pixels; None when all is outside."""
        height, width = self.alpha.shape
        left = max(0, int(np.floor(min(p[0] for p in points) - margin)))
        right = min(width, int(np.ceil(max(p[0] for p in points) + margin)))
        top = max(0, int(np.floor(min(p[1] for p in points) - margin)))
        bottom = min(height, int(np.ceil(max(p[1] for p in points) + margin)))
        if left >= right or top >= bottom:
            return None
        rows, columns = slice(top, bottom), slice(left, right)
        return Window(rows, columns, self.x[:, columns], self.y[rows])

    def over(self, window: Window, coverage: Array, colour: Array) -> None:
        """Lay `colour`, (3, 1, 1) or (3, h, w), with `coverage` (h, w) on top of what is there."""
        keep = 1 - coverage
        under = self.colour[:, window.rows, window.columns]
        under *= keep
        under += colour * coverage
        alpha = self.alpha[window.rows, window.columns]
        alpha *= keep
        alpha += coverage


def coverage(distance: Array, softness: float) -> Array:
    """Coverage 0..1 of a shape at signed `distance` pixels, falling over `softness` pixels."""
    ramp: Array = np.clip(0.5 - distance / np.float32(softness), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def capsule(window: Window, start: Point, end: Point, radii: Point) -> tuple[Array, Array, Array]:
    """Signed distance to a tapered capsule, position along it (0..1), signed position across it (radii)."""
    along_x, along_y = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    length = max(float(np.hypot(along_x, along_y)), 1e-3)
    x, y = window.x - np.float32(start[0]), window.y - np.float32(start[1])
    position = np.clip((x * along_x + y * along_y) / np.float32(length**2), 0, 1)
    off_x, off_y = x - position * along_x, y - position * along_y
    radius = np.float32(radii[0]) + position * np.float32(radii[1] - radii[0])
    across = (x * along_y - y * along_x) / np.float32(length) / radius
    return np.sqrt(off_x * off_x + off_y * off_y) - radius, position, across


def ellipse(window: Window, centre: Point, radii: Point, angle: float) -> tuple[Array, Array, Array]:
    """Signed distance (first order) to an ellipse turned by `angle`, and the two local coordinates (radii)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = window.x - np.float32(centre[0]), window.y - np.float32(centre[1])
    u = (x * cos + y * sin) / np.float32(radii[0])
    v = (y * cos - x * sin) / np.float32(radii[1])
    norm = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / np.float32(radii[0])) ** 2 + (v / np.float32(radii[1])) ** 2)
    return norm * (norm - 1) / np.maximum(slope, np.float32(1e-6)), u, v


def box(window: Window, centre: Point, half: Point, angle: float, rounding: float) -> Array:
    """Signed distance to a rectangle of half sizes `half` with rounded corners, turned by `angle`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = window.x - np.float32(centre[0]), window.y - np.float32(centre[1])
    u = np.abs(x * cos + y * sin) - np.float32(half[0] - rounding)
    v = np.abs(y * cos - x * sin) - np.float32(half[1] - rounding)
    outside: Array = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
    return outside + np.minimum(np.maximum(u, v), 0) - np.float32(rounding)


def smooth_union(first: Array, second: Array, blend: float) -> Array:
    """The smaller of two distances, rounded where they differ by less than `blend` pixels."""
    gap = np.maximum(np.float32(blend) - np.abs(first - second), 0)
    return np.minimum(first, second) - gap * gap * np.float32(0.25 / blend)


def splat_strands(layer: Layer, x: Array, y: Array, weight: Array, shade: Array, colour: Array) -> None:
    """Lay thin strands over `layer`.

    Each sample point deposits `weight` square pixels of thread on its four nearest pixels (bilinear); threads cross
    at random, so a pixel holding the area A is covered by 1 - exp(-A). `shade` multiplies `colour` (3,).

    Args:
        layer: the layer drawn on.
        x: (strands, samples) sample positions in pixels.
        y: as `x`.
        weight: (strands, samples) area of each sample.
        shade: (strands, samples) brightness of each sample.
        colour: (3,) RGB.
    """
    height, width = layer.alpha.shape
    seen = (x > -0.5) & (x < width + 1) & (y > -0.5) & (y < height + 1)
    if not seen.any():
        return
    column, row, area, light = x[seen] + 0.5, y[seen] + 0.5, weight[seen], shade[seen]
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_part, lower_part = column - left, row - top
    stride = width + 3
    corner = top * stride + left
    places = np.concatenate((corner, corner + 1, corner + stride, corner + stride + 1))
    upper, lower = area * (1 - lower_part), area * lower_part
    areas = np.concatenate(
        (upper * (1 - right_part), upper * right_part, lower * (1 - right_part), lower * right_part)
    )
    size = (height + 3) * stride
    inner = (slice(1, height + 1), slice(1, width + 1))
    total = np.bincount(places, areas, size).reshape(height + 3, stride)[inner]
    lit = np.bincount(places, areas * np.tile(light, 4), size).reshape(height + 3, stride)[inner]
    covered = (1 - np.exp(-total)).astype(np.float32)
    brightness = (lit / np.maximum(total, 1e-9)).astype(np.float32)
    whole = Window(slice(0, height), slice(0, width), layer.x, layer.y)
    layer.over(whole, covered, np.clip(colour[:, None, None] * brightness, 0, 1))


def enlarge(grid: Array, height: int, width: int) -> Array:
    """A grid (C, h, w) stretched to (C, height, width) with smooth interpolation, corners on corners."""
    rows = np.linspace(0, grid.shape[1] - 1, height, dtype=np.float32)
    columns = np.linspace(0, grid.shape[2] - 1, width, dtype=np.float32)
    return sample_grid(grid, rows, columns, smooth=True)


def sample_grid(grid: Array, rows: Array, columns: Array, smooth: bool = False) -> Array:
    """Values of `grid` (C, h, w) at the crossings of `rows` and `columns` (in samples), clamped at the rim."""

    def blend(positions: Array, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        low = np.clip(np.floor(positions).astype(np.int64), 0, size - 1)
        part = np.clip(positions - low, 0, 1).astype(np.float32)
        return low, np.minimum(low + 1, size - 1), part * part * (3 - 2 * part) if smooth else part

    low, high, part = blend(rows, grid.shape[1])
    lines = grid[:, low] * (1 - part)[:, None] + grid[:, high] * part[:, None]
    low, high, part = blend(columns, grid.shape[2])
    return lines[:, :, low] * (1 - part) + lines[:, :, high] * part


def noise(rng: np.random.Generator, height: int, width: int, cells: float, channels: int = 1) -> Array:
    """Smooth noise in -1..1, (channels, height, width), with about `cells` bumps along the shorter side."""
    short = min(height, width)
    rows, columns = (max(2, round(cells * side / short) + 1) for side in (height, width))
    grid = rng.random((channels, rows, columns), dtype=np.float32) * 2 - 1
    return enlarge(grid, height, width)


def octaves(
    rng: np.random.Generator, height: int, width: int, cells: float, count: int, keep: float
) -> Array:
    """Sum (height, width) of `count` noises, each twice as fine and `keep` times as strong as the one before."""
    total = np.zeros((height, width), np.float32)
    for level in range(count):
        total += np.float32(keep**level) * noise(rng, height, width, cells * 2**level)[0]
    return total


def box_blur(image: Array, radius: int) -> Array:
    """Mean of `image` (C, H, W) over squares of 2 * radius + 1 pixels, applied twice; the rim is repeated."""
    for _ in range(2):
        for axis in (1, 2):
            pad = [(0, 0)] * 3
            pad[axis] = (radius + 1, radius)
            sums = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
            size = image.shape[axis]
            reach = 2 * radius + 1
            high = np.take(sums, np.arange(reach, reach + size), axis=axis)
            low = np.take(sums, np.arange(size), axis=axis)
            image = ((high - low) / reach).astype(np.float32)
    return image


def fill_outside(layer: Layer, fallback: Array) -> Array:
    """Colour (3, H, W) of a layer without premultiplication, spread smoothly where nothing is drawn.

    Coverage and colour are averaged down a pyramid of halves; on the way back each level keeps what it knows and
    takes the rest from the coarser one. `fallback` (3,) fills an empty layer.
    """
    levels = [(layer.colour, layer.alpha)]
    while min(levels[-1][1].shape) > 1:
        colour, alpha = levels[-1]
        levels.append((_halve(colour), _halve(alpha[None])[0]))
    colour, alpha = levels.pop()
    filled: Array = (colour + np.float32(1e-6) * fallback[:, None, None]) / (alpha + np.float32(1e-6))
    while levels:
        colour, alpha = levels.pop()
        coarse = _double(filled, *alpha.shape)
        filled = (colour + np.float32(1e-3) * coarse) / (alpha + np.float32(1e-3))
    return filled


def _halve(image: Array) -> Array:
    even = np.pad(image, ((0, 0), (0, image.shape[1] % 2), (0, image.shape[2] % 2)), mode="edge")
    rows = even[:, 0::2] + even[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _double(image: Array, height: int, width: int) -> Array:
    rows = np.arange(height, dtype=np.float32) / 2 - np.float32(0.25)
    columns = np.arange(width, dtype=np.float32) / 2 - np.float32(0.25)
    return sample_grid(image, rows, columns)


@dataclass(frozen=True)
class Texture:
    """A colour tile (3, S, S) that repeats over the plane."""

    tile: Array

    def fit(self, pixels: float) -> "Texture":
        """The tile for drawing where it spans `pixels`: averaged down to that size, then stretched fourfold."""
        tile = self.tile
        while tile.shape[1] > 2 * pixels and tile.shape[1] > 4:
            tile = _halve(tile)
        rim = np.concatenate((tile[:, :, -1:], tile, tile[:, :, :1]), axis=2)
        rim = np.concatenate((rim[:, -1:], rim, rim[:, :1]), axis=1)
        places = np.arange(4 * tile.shape[1], dtype=np.float32) / 4 + np.float32(0.625)
        return Texture(np.ascontiguousarray(sample_grid(rim, places, places)))

    def at(self, u: Array, v: Array) -> Array:
        """Colours (3, h, w) at `u`, `v` (h, w), where 1 is the size of a tile; the nearest texel."""
        size = self.tile.shape[1]
        column = np.floor(u * np.float32(size)).astype(np.int32) % size
        row = np.floor(v * np.float32(size)).astype(np.int32) % size
        texels: Array = self.tile.reshape(3, -1)[:, row * size + column]
        return texels


def sample_texture(rng: np.random.Generator, first: Array, second: Array, size: int = 64) -> Texture:
    """A random tile of plain cloth, stripes, checks, dots or blotches in the colours `first` and `second` (3,)."""
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    u, v = steps[None, :], steps[:, None]
    turns = np.float32(2 * np.pi * rng.integers(2, 8))
    kind = rng.choice(
        ["plain", "stripes", "columns", "checks", "dots", "blotches"], p=[0.35, 0.15, 0.1, 0.15, 0.1, 0.15]
    )
    ramp = {
        "plain": np.zeros((size, size), np.float32),
        "stripes": np.sin(turns * v) + 0 * u,
        "columns": np.sin(turns * u) + 0 * v,
        "checks": np.sin(turns * u) + np.sin(turns * v),
        "dots": np.sin(turns * u) * np.sin(turns * v) - np.float32(0.4),
        "blotches": noise(rng, size, size, 5)[0] * 2,
    }[str(kind)]
    share = np.clip(ramp * np.float32(rng.uniform(2, 6)) + np.float32(0.5), 0, 1)
    if kind == "plain":
        share = np.zeros_like(share)
    tile = first[:, None, None] * (1 - share) + second[:, None, None] * share
    grain = noise(rng, size, size, 16)[0] * np.float32(rng.uniform(0, 0.2)) + 1
    return Texture(np.clip(tile * grain, 0, 1).astype(np.float32))
