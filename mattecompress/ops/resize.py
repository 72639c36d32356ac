"""Bilinear resizing of which every rounding is stated.

For output position i with scale s: x = max((i + 1/2) s - 1/2, 0), or i (m-1)/(n-1) with aligned corners;
low = floor(x), high = min(low + 1, m - 1), weight of high = x - low, all as ATen computes them in float32.

Rows are blended first, columns of blended rows afterwards: near * a[low], rounded, then far * a[high] added to it by a
fused multiply-add. Weights of 1/4 and 3/4 leave `multiply_add` nothing to round twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mattecompress.ops.reproducible import multiply_add

Array = np.ndarray[Any, Any]
SMALLEST_FACTOR = 4


@dataclass(frozen=True)
class Taps:
    """Positions and weights along one axis: int32 low and high, float32 near and far, each of the output's size."""

    low: Array
    high: Array
    near: Array
    far: Array


def taps(size: int, result: int, scale: float | None, align_corners: bool) -> Taps:
    """The taps of an axis of `size` pixels resized to `result`.

    scale: output over input as the caller gave it; None: the ratio of the sizes.
    """
    index = np.arange(result, dtype=np.float32)
    if align_corners:
        step = np.float32((size - 1) / (result - 1)) if result > 1 else np.float32(0)
        place = index * step
    else:
        step = np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(result)
        place = np.maximum((index + np.float32(0.5)) * step - np.float32(0.5), np.float32(0))
    low = np.minimum(np.floor(place).astype(np.int32), size - 1)
    high = np.minimum(low + 1, size - 1).astype(np.int32)
    far = np.clip(place - low.astype(np.float32), 0, 1).astype(np.float32)
    return Taps(low, high, (np.float32(1) - far).astype(np.float32), far)


@dataclass(frozen=True)
class Phases:
    """Taps of an axis that grows by a whole factor: result i reads (i + shift) // factor - 1 and the one after it.

    weights: float32 (2, result + factor), near and far of result i at i + shift; 0 where there is none.
    """

    factor: int
    shift: int
    weights: Array


def phases(axis: Taps, size: int) -> Phases | None:
    """The same taps of an axis of `size` pixels, within which reading stays, if it grows by a power of two from 4 on."""
    result = len(axis.low)
    factor = result // size
    if factor < SMALLEST_FACTOR or factor & (factor - 1) or factor * size != result:
        return None
    shift = factor // 2
    place = (np.arange(result) + shift) // factor
    low, high = ((place - step).clip(0, size - 1) for step in (1, 0))
    if (low != axis.low).any() or ((high != axis.high) & (axis.far != 0)).any():
        return None
    weights = np.zeros((2, result + factor), np.float32)
    weights[:, shift : shift + result] = axis.near, axis.far
    return Phases(factor, shift, weights)


@torch.library.custom_op(
    "matte::resize_bilinear",
    mutates_args=(),
    schema="(Tensor x, SymInt[]? size, bool align_corners, float[]? scales) -> Tensor",
)
def resize_bilinear(
    x: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    """Resize float32 images.

    Args:
        x: (N, C, H, W).
        size: (OH, OW), or None where the scales are given.
        align_corners: corners fall upon corners, instead of edges upon edges.
        scales: output over input, (vertical, horizontal), or None.

    Returns:
        (N, C, OH, OW).
    """
    results = _result(x.shape[2:], size, scales)
    rows, columns = (
        taps(have, wanted, scale, align_corners)
        for have, wanted, scale in zip(x.shape[2:], results, scales or (None, None), strict=True)
    )
    return _blend(_blend(x, rows, 2), columns, 3)


def _result(
    have: Sequence[int], size: Sequence[int] | None, scales: Sequence[float] | None
) -> tuple[int, ...]:
    if size is not None:
        return tuple(size)
    if scales is None:
        raise ValueError("neither a size nor scales")
    return tuple(int(axis * scale) for axis, scale in zip(have, scales, strict=True))


def _blend(x: Tensor, axis: Taps, dim: int) -> Tensor:
    places = (torch.from_numpy(place) for place in (axis.low, axis.high))
    low, high = (x.index_select(dim, place) for place in places)
    shape = (-1, *[1] * (3 - dim))
    near, far = (torch.from_numpy(weight).reshape(shape) for weight in (axis.near, axis.far))
    return multiply_add(high, far, low * near)


@resize_bilinear.register_fake
def _(x: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None) -> Tensor:
    return x.new_empty((*x.shape[:2], *_result(x.shape[2:], size, scales)))
