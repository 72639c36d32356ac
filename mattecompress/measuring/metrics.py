"""How far a matte is from the truth.

Video, per frame, alpha p predicted and a true in 0..1:

    MAD    = 1e3 * mean |p - a|
    MSE    = 1e3 * mean (p - a)^2
    Grad   = 1e-3 * sum (G(a) - G(p))^2           G: amplitude of the Gaussian gradient, sigma 1.4
    Conn   = 1e-3 * sum |phi(a) - phi(p)|         phi: degree of connectedness, threshold step 0.1, theta 0.15
    dtSSD  = 1e2 * sqrt(mean ((p_t - p_t-1) - (a_t - a_t-1))^2)     0 in the first frame of a clip
    foreground MSE, MAD = 1e3 * mean over the colours of pixels with a > 0

Image (Composition-1K), over the unknown pixels U of the trimap: SAD = 1e-3 * sum |p - a|, MSE = mean (p - a)^2, Grad
and Conn as above summed over U.

The conventions are those of the evaluation scripts of "Robust High-Resolution Video Matting with Temporal Guidance"
(WACV 2022) and of the Composition-1K scripts of "Deep Image Matting" (CVPR 2017).
"""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

SIGMA = 1.4
TAIL = 1e-2
STEP = 0.1
THETA = 0.15
UNKNOWN = 128

Rule = Literal["matlab", "python"]
Mask = NDArray[np.bool_]


def mad(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference x 1e3 of each frame; any (T, ...) to float64 (T,)."""
    return 1e3 * _difference(predicted, true).abs().mean(dim=1)


def mse(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean squared difference x 1e3 of each frame; any (T, ...) to float64 (T,)."""
    return 1e3 * _difference(predicted, true).square().mean(dim=1)


def gradient(predicted: Tensor, true: Tensor, normalize: bool = True) -> Tensor:
    """Gradient error / 1000 of each frame; (T, 1, H, W) to float64 (T,).

    Args:
        predicted: alpha.
        true: alpha.
        normalize: stretch each frame of both to 0..1 first (the low-resolution rule); the high-resolution rule
            does not.
    """
    error = gradient_amplitude(predicted, normalize) - gradient_amplitude(true, normalize)
    return error.square().flatten(1).sum(dim=1) / 1000


def connectivity(predicted: Tensor, true: Tensor) -> Tensor:
    """Connectivity error / 1000 of each frame; (T, 1, H, W) to float64 (T,)."""
    errors = [_connectivity_map(p, a).sum() for p, a in zip(_planes(predicted), _planes(true), strict=True)]
    return torch.tensor(errors, dtype=torch.float64) / 1000


def dtssd(predicted: Tensor, true: Tensor) -> Tensor:
    """Flicker x 1e2 of each frame of one clip, 0 in the first; any (T, ...) to float64 (T,)."""
    change = _difference(predicted, true).diff(dim=0)
    return torch.cat((change.new_zeros(1), 1e2 * change.square().mean(dim=1).sqrt()))


def foreground_mse(predicted: Tensor, true: Tensor, true_alpha: Tensor) -> Tensor:
    """Mean squared colour difference x 1e3 where the true alpha is above 0; (T, 3, H, W) to float64 (T,).

    A frame without foreground counts 0.
    """
    return 1e3 * _mean_over_foreground(_difference(predicted, true).square(), true_alpha)


def foreground_mad(predicted: Tensor, true: Tensor, true_alpha: Tensor) -> Tensor:
    """Mean absolute colour difference x 1e3 where the true alpha is above 0; (T, 3, H, W) to float64 (T,).

    A frame without foreground counts 0.
    """
    return 1e3 * _mean_over_foreground(_difference(predicted, true).abs(), true_alpha)


def frame_metrics(
    pred_alpha: Tensor,
    true_alpha: Tensor,
    pred_fgr: Tensor | None = None,
    true_fgr: Tensor | None = None,
    high_resolution: bool = False,
) -> dict[str, Tensor]:
    """Every video metric of one clip, frame by frame.

    Args:
        pred_alpha: (T, 1, H, W) in 0..1; the published numbers are of alpha stored with 8 bits by truncation.
        true_alpha: as `pred_alpha`.
        pred_fgr: (T, 3, H, W) RGB in 0..1.
        true_fgr: as `pred_fgr`.
        high_resolution: the rules for large frames: no stretching before Grad, no Conn.

    Returns:
        float64 (T,) under mad, mse, grad, conn, dtssd, and fgr_mse when both foregrounds are given.

    Raises:
        ValueError: shapes differ or are not those of a clip, or only one foreground is given.
    """
    _require_clip(pred_alpha, true_alpha, channels=1)
    if (pred_fgr is None) != (true_fgr is None):
        raise ValueError("the foreground error needs both the predicted and the true foreground")
    scores = {
        "mad": mad(pred_alpha, true_alpha),
        "mse": mse(pred_alpha, true_alpha),
        "grad": gradient(pred_alpha, true_alpha, normalize=not high_resolution),
    }
    if not high_resolution:
        scores["conn"] = connectivity(pred_alpha, true_alpha)
    scores["dtssd"] = dtssd(pred_alpha, true_alpha)
    if pred_fgr is not None and true_fgr is not None:
        _require_clip(pred_fgr, true_fgr, channels=3)
        scores["fgr_mse"] = foreground_mse(pred_fgr, true_fgr, true_alpha)
    return scores


def evaluate_clip(
    pred_alpha: Tensor,
    true_alpha: Tensor,
    pred_fgr: Tensor | None = None,
    true_fgr: Tensor | None = None,
    high_resolution: bool = False,
) -> dict[str, float]:
    """Every video metric of one clip, averaged over its frames; arguments and errors as `frame_metrics`."""
    return average([frame_metrics(pred_alpha, true_alpha, pred_fgr, true_fgr, high_resolution)])


def average(clips: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Scores of a set of clips from their `frame_metrics`.

    Frame t is averaged over the clips that have it, then the frames are averaged; the zero of the first dtSSD frame
    counts.

    Raises:
        ValueError: there is no clip, or the clips have different metrics.
    """
    scores = list(clips)
    if not scores or any(clip.keys() != scores[0].keys() for clip in scores):
        raise ValueError("give at least one clip, and clips with the same metrics")
    return {name: _average_frames([clip[name] for clip in scores]) for name in scores[0]}


def evaluate_image(
    pred_alpha: Tensor, true_alpha: Tensor, trimap: Tensor, rule: Rule = "matlab"
) -> dict[str, float]:
    """The Composition-1K errors of one image; the mean over images is the score of a set.

    The rules differ in two points. "matlab" (the published numbers): both mattes are stretched to 0..1 before Grad,
    and the connected region is the largest component of the common support, empty where that is empty. "python" (a
    widespread port): no stretching, and the complement of the support competes as one more component.

    Args:
        pred_alpha: uint8 (H, W).
        true_alpha: uint8 (H, W).
        trimap: uint8 (H, W); pixels equal to 128 are unknown.
        rule: "matlab" or "python".

    Returns:
        sad, mse, grad, conn; sad, grad and conn are divided by 1000, mse is as it is.

    Raises:
        ValueError: shapes or dtypes differ, or no pixel is unknown.
    """
    images = (pred_alpha, true_alpha, trimap)
    if any(i.dtype != torch.uint8 or i.ndim != 2 or i.shape != pred_alpha.shape for i in images):
        raise ValueError(
            f"expected three uint8 images of one size, got {[(i.dtype, *i.shape) for i in images]}"
        )
    unknown = trimap == UNKNOWN
    if not unknown.any():
        raise ValueError(f"no pixel of the trimap is {UNKNOWN}: nothing to measure")
    predicted, true = pred_alpha.double()[None, None] / 255, true_alpha.double()[None, None] / 255
    matlab = rule == "matlab"
    slope = gradient_amplitude(predicted, matlab) - gradient_amplitude(true, matlab)
    broken = _connectivity_map(_planes(predicted)[0], _planes(true)[0], rival_background=not matlab)
    error = (predicted - true)[0, 0][unknown]
    return {
        "sad": float(error.abs().sum() / 1000),
        "mse": float(error.square().mean()),
        "grad": float(slope[0, 0][unknown].square().sum() / 1000),
        "conn": float(torch.from_numpy(broken)[unknown].sum() / 1000),
    }


def gradient_amplitude(alpha: Tensor, normalize: bool) -> Tensor:
    """Amplitude of the Gaussian gradient, rim repeated; (T, 1, H, W) to float64 of the same shape."""
    alpha = alpha.double()
    if normalize:
        low, high = alpha.amin(dim=(2, 3), keepdim=True), alpha.amax(dim=(2, 3), keepdim=True)
        alpha = (alpha - low) / torch.where(high > low, high - low, 1.0)
    smooth, slope = _gradient_filter()
    reach = len(smooth) // 2
    wide = pad(alpha, (reach, reach, reach, reach), mode="replicate")
    across = _correlate(_correlate(wide, smooth, dim=2), slope, dim=3)
    down = _correlate(_correlate(wide, smooth, dim=3), slope, dim=2)
    return (across.square() + down.square()).sqrt()


def _correlate(image: Tensor, taps: Tensor, dim: int) -> Tensor:
    size = image.shape[dim] - len(taps) + 1
    total = torch.zeros_like(image.narrow(dim, 0, size))
    for offset, tap in enumerate(taps.tolist()):
        total.add_(image.narrow(dim, offset, size), alpha=tap)
    return total


def _gradient_filter() -> tuple[Tensor, Tensor]:
    """The two factors, float64 (9,), of the Gaussian derivative filter of Frobenius norm 1."""
    reach = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * TAIL)))
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    bell = torch.exp(-x.square() / (2 * SIGMA**2))
    slope = -x * bell
    return bell / bell.norm(), slope / slope.norm()


def _difference(predicted: Tensor, true: Tensor) -> Tensor:
    return (predicted.double() - true.double()).flatten(1)


def _mean_over_foreground(error: Tensor, true_alpha: Tensor) -> Tensor:
    inside = (true_alpha > 0).expand(-1, 3, -1, -1).flatten(1)
    return (error * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


def _average_frames(clips: list[Tensor]) -> float:
    longest = max(len(clip) for clip in clips)
    frames = [torch.stack([clip[t] for clip in clips if t < len(clip)]).mean() for t in range(longest)]
    return float(torch.stack(frames).mean())


def _require_clip(predicted: Tensor, true: Tensor, channels: int) -> None:
    if (
        predicted.shape != true.shape
        or predicted.ndim != 4
        or predicted.shape[1] != channels
        or not len(predicted)
    ):
        raise ValueError(
            f"expected two clips (T, {channels}, H, W) of one shape, got {tuple(predicted.shape)} and {tuple(true.shape)}"
        )


def _planes(clip: Tensor) -> list[NDArray[np.floating[Any]]]:
    return [frame[0].numpy() for frame in clip.detach().cpu()]


def _connectivity_map(
    predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]], rival_background: bool = False
) -> NDArray[np.float64]:
    """|phi(true) - phi(predicted)| of one frame (H, W).

    l is the highest threshold at which a pixel still belongs to the connected region that both mattes share;
    phi = 1 - d [d >= theta] with d = value - l.
    """
    level = np.ones(true.shape)
    held = np.ones(true.shape, np.bool_)
    steps = np.arange(0, 1 + STEP, STEP)
    for below, step in pairwise(steps):
        region = largest_component((predicted >= step) & (true >= step), rival_background)
        level[held & ~region] = below
        held &= region
    phi_true, phi_predicted = (1 - np.where(v - level >= THETA, v - level, 0) for v in (true, predicted))
    return np.asarray(np.abs(phi_true - phi_predicted))


def largest_component(mask: Mask, rival_background: bool = False) -> Mask:
    """The largest 4-connected component of `mask` (H, W), the first in reading order among equals; empty if none.

    Runs of each row are the nodes of a graph whose edges join runs that touch in neighbouring rows; roots sink to the
    smallest run number until every edge joins equal roots.

    Args:
        mask: the pixels to group.
        rival_background: return the complement of `mask` instead when it has at least as many pixels.
    """
    width = mask.shape[1] + 1
    walled = np.zeros((mask.shape[0], width), np.bool_)
    walled[:, :-1] = mask
    flat = walled.reshape(-1)
    starts = flat & ~np.concatenate(([False], flat[:-1]))
    run = (np.cumsum(starts) - 1).reshape(walled.shape)
    count = int(starts.sum())
    if count == 0:
        return np.ones_like(mask) if rival_background else mask.copy()
    touching = walled[:-1] & walled[1:]
    edges = np.unique(run[:-1][touching] * count + run[1:][touching])
    root = _roots(count, edges // count, edges % count)
    labels = root[run[:, :-1]]
    areas = np.bincount(labels[mask], minlength=count)
    largest = int(areas.argmax())
    if rival_background and mask.size - int(mask.sum()) >= areas[largest]:
        return ~mask
    return np.asarray(mask & (labels == largest))


def _roots(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node of the component of each of `count` nodes."""
    root = np.arange(count)
    while True:
        a, b = root[first], root[second]
        if np.array_equal(a, b):
            return root
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(root, root[root]):
            root = root[root]
