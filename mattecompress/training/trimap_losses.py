"""Losses of networks that take a trimap (Yao et al., "ViTMatte", 2023) and of token routing (MEMatte, AAAI 2025).

With a, a* the predicted alpha and the truth, S = [trimap = 1/2], P the number of pixels, C = P / sum S, and G the two
Sobel filters, all norms means over all elements:

L_unknown    = C |S (a - a*)|_1,            L_known = C' |(1 - S) (a - a*)|_1 with C' of the complement
L_lap        = that of `mattecompress.training.losses`
L_gradient   = sum over G of C |S (G a - G a*)|_1 + 0.01 C |S G a|_1

L_distill    = |F - F*|_2^2                 features F of the student against a teacher's F*
L_compress   = (rho - gamma)^2              gamma the share of tokens that attended, rho the one wanted
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.training.losses import laplacian_loss

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SMOOTHNESS = 0.01


def trimap_matting_loss(alpha: Tensor, true: Tensor, trimap: Tensor) -> dict[str, Tensor]:
    """The terms of the matting loss by name, and their sum as `total`; each a scalar.

    alpha, true, trimap: (N,1,H,W) in 0..1, of sides of at least 64; unknown is what is neither 0 nor 1 in the trimap.
    """
    unknown = ((trimap > 0) & (trimap < 1)).to(alpha)
    terms = {
        "unknown_l1": masked_mean((alpha - true).abs(), unknown),
        "known_l1": masked_mean((alpha - true).abs(), 1 - unknown),
        "laplacian": laplacian_loss(alpha, true),
        "gradient": gradient_loss(alpha, true, unknown),
    }
    return {**terms, "total": torch.stack(list(terms.values())).sum()}


def gradient_loss(alpha: Tensor, true: Tensor, unknown: Tensor) -> Tensor:
    """L_gradient of the module's equations, a scalar, from three (N,1,H,W)."""
    across = alpha.new_tensor(SOBEL)
    filters = torch.stack([across, across.T])[:, None]
    slopes, true_slopes = (F.conv2d(image, filters, padding=1) for image in (alpha, true))
    difference, steepness = (slopes - true_slopes).abs(), SMOOTHNESS * slopes.abs()
    return masked_mean(difference.sum(1, keepdim=True) + steepness.sum(1, keepdim=True), unknown)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values under a mask of zeros and ones of the same shape, 0 where the mask is empty; a scalar."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def distillation_loss(features: Tensor, taught: Tensor) -> Tensor:
    """L_distill of the module's equations, a scalar; no gradient reaches what is taught."""
    return F.mse_loss(features.float(), taught.detach().float())


def compression_loss(attended: Tensor, share: float) -> Tensor:
    """L_compress of the module's equations, a scalar, from the share that attended, a scalar in 0..1."""
    return (share - attended).square()
