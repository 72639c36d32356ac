"""Matting losses of Robust Video Matting (Lin et al. 2021, section 5.2), as pure functions.

With a, f the predicted alpha and foreground and a*, f* the truth, over frames t:

L_alpha      = |a - a*|_1 + L_lap(a, a*) + 5 |da/dt - da*/dt|_2^2
L_foreground = |m (f - f*)|_1 + 5 |m (df/dt - df*/dt)|_2^2,  m = [a* > 0]   (f and f* are masked before d/dt)
L_lap        = 1/5 sum_{s=0..4} 2^s |lap_s(a) - lap_s(a*)|_1

Every norm is a mean over all elements. The segmentation loss is binary cross entropy on logits.

Besides, two losses of BiVM (Xu et al. 2025), whose symbols are lost in our copy of the paper: reconstructions (R).

L_LBM = sum_s |M_s (F_s - F_s*)|_2      equation (20): features F_s against a teacher's F_s* under the mask M_s; no mean
R_evo = sum (b^2 + c^2)                 equations (13), (18): factors of the shortcuts that cross several layers
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
COHERENCE_WEIGHT = 5.0
BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


def matting_loss(
    fgr: Tensor, pha: Tensor, true_fgr: Tensor, true_pha: Tensor, levels: int = LEVELS
) -> dict[str, Tensor]:
    """The terms of the matting loss by name, and their sum as `total`; each a scalar of the inputs' dtype.

    fgr and true_fgr are (B,T,3,H,W), pha and true_pha (B,T,1,H,W), all in 0..1. With T = 1 the coherence terms are 0.
    levels: of the Laplacian pyramid.
    """
    seen = (true_pha > 0).to(true_fgr)
    masked, true_masked = fgr * seen, true_fgr * seen
    terms = {
        "alpha_l1": F.l1_loss(pha, true_pha),
        "alpha_laplacian": laplacian_loss(pha.flatten(0, 1), true_pha.flatten(0, 1), levels),
        "alpha_coherence": COHERENCE_WEIGHT * coherence_loss(pha, true_pha),
        "foreground_l1": F.l1_loss(masked, true_masked),
        "foreground_coherence": COHERENCE_WEIGHT * coherence_loss(masked, true_masked),
    }
    return {**terms, "total": torch.stack(list(terms.values())).sum()}


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of `logits` against `mask` in 0..1, of the same shape; a scalar."""
    return F.binary_cross_entropy_with_logits(logits, mask)


def mimicking_loss(features: Sequence[Tensor], taught: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """L_LBM of the module's equations, a scalar; no gradient reaches what is taught, or the mask.

    features, taught: one (N,C,h,w) a scale, at least one.
    mask: (N,1,h,w) in 0..1, resized bilinearly to each scale; None for 1 everywhere.
    """
    terms = []
    for ours, theirs in zip(features, taught, strict=True):
        difference = ours - theirs.detach()
        if mask is not None:
            size = ours.shape[-2:]
            difference = difference * F.interpolate(mask.detach(), size, mode="bilinear", align_corners=False)
        terms.append(torch.linalg.vector_norm(difference))
    return torch.stack(terms).sum()


def evolution_loss(factors: Iterable[Tensor]) -> Tensor:
    """R_evo of the module's equations, a scalar, from the factors."""
    return torch.stack([factor.square().sum() for factor in factors]).sum()


def coherence_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean squared difference of the frame-to-frame changes of two (B,T,C,H,W) tensors; 0 when T is 1."""
    if predicted.shape[1] == 1:
        return predicted.new_zeros(())
    return F.mse_loss(predicted[:, 1:] - predicted[:, :-1], true[:, 1:] - true[:, :-1])


def laplacian_loss(predicted: Tensor, true: Tensor, levels: int = LEVELS) -> Tensor:
    """Weighted L1 distance of the Laplacian pyramids of two (N,1,H,W) tensors, level s weighted by 2^s; a scalar.

    Sides must be at least 4 * 2^(levels-1) pixels, since the blur reflects two pixels at each level.
    """
    difference = predicted - true
    terms = [2**s * band.abs().mean() for s, band in enumerate(laplacian_pyramid(difference, levels))]
    return torch.stack(terms).sum() / levels


def laplacian_pyramid(image: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """The `levels` bands of an (N,1,H,W) image, fine to coarse; each level is cut to an even size first."""
    bands = []
    for _ in range(levels):
        height, width = image.shape[-2:]
        image = image[..., : height - height % 2, : width - width % 2]
        smaller = _blur(image)[..., ::2, ::2]
        bands.append(image - _enlarge(smaller))
        image = smaller
    return bands


def _blur(image: Tensor) -> Tensor:
    row = image.new_tensor(BINOMIAL) / sum(BINOMIAL)
    image = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), row.view(1, 1, 1, -1))
    return F.conv2d(image, row.view(1, 1, -1, 1))


def _enlarge(image: Tensor) -> Tensor:
    """Twice the size: each value becomes 4 beside three zeros, then the blur spreads it."""
    grown = F.pad(image.unsqueeze(-1).unsqueeze(-3), (0, 1, 0, 0, 0, 1))
    height, width = image.shape[-2:]
    return _blur(4 * grown.reshape(*image.shape[:2], 2 * height, 2 * width))
