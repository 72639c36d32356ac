"""Where a decoder has to look closely: the positions whose coarse value does not survive a smaller size.

With F the coarse alpha, before it is clamped, and R(x) = up(down(x)), bilinear to half the size (rounded down, at least
one pixel) and back:

    residual          M = [ |F - R(F)| >= threshold ]
    xor               M = [ F > threshold ] xor [ R(F) > threshold ]
    support_residual  M = [ |S - R(S)| >= threshold ],  S = [ clamp(F, 0, 1) > 0 ]

Source: `support_residual` is what BiMatting's program computes, with threshold 0.01. The other two are our readings of
BiVM equations (14) and (15), whose symbols are lost in our copy: reconstructions (R).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rule = Literal["residual", "xor", "support_residual"]


@dataclass(frozen=True)
class SpatialMaskConfig:
    """Which rule makes the mask, and its threshold."""

    rule: Rule = "support_residual"
    threshold: float = 0.01


class SpatialMask(nn.Module):
    """A mask of zeros and ones; no gradient flows through it."""

    def __init__(self, config: SpatialMaskConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """(N,1,H,W) to zeros and ones of the same shape and type."""
        x, threshold = x.detach(), self.config.threshold
        value = compared(x, self.config.rule)
        if self.config.rule == "xor":
            chosen = (value > threshold) ^ (blurred(value) > threshold)
        else:
            chosen = value >= threshold
        return chosen.to(x.dtype)

    def shaped(self, x: Tensor) -> Tensor:
        """An empty result: `forward` asks more of open sizes than its result's shape depends on."""
        return torch.empty_like(x)


def compared(x: Tensor, rule: Rule) -> Tensor:
    """What a rule compares with its threshold, of the coarse alpha (N,1,H,W): a residual, or for xor the alpha."""
    match rule:
        case "residual":
            return residual(x)
        case "xor":
            return x
        case "support_residual":
            return residual((x.clamp(0, 1) > 0).to(x.dtype))


def residual(x: Tensor) -> Tensor:
    """|x - R(x)| of the module's equations, (N,C,H,W)."""
    return (x - blurred(x)).abs()


def blurred(x: Tensor) -> Tensor:
    """R(x) of the module's equations, (N,C,H,W)."""
    height, width = x.shape[-2:]
    half = (torch.sym_max(height // 2, 1), torch.sym_max(width // 2, 1))
    down = F.interpolate(x, half, mode="bilinear", align_corners=False)
    return F.interpolate(down, (height, width), mode="bilinear", align_corners=False)
