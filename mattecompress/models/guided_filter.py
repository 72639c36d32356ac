"""Guided filters that carry a low-resolution matte to full resolution (Wu et al. 2018, "Fast End-to-End Trainable
Guided Filter"; He and Sun 2015, "Fast Guided Filter").

With x the grey-extended image, y the low-resolution result and m the 3x3 box mean:
cov = m(x*y) - m(x)*m(y),  var = m(x*x) - m(x)^2,  A = g(cov, var),  b = m(y) - A*m(x),  out = up(A)*x_full + up(b).
The deep form learns g and m; the fast form has g = cov / (var + 1e-5).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-5


class DeepGuidedFilter(nn.Module):
    """The guided filter whose slope is a small network on (cov, var, hidden); the box filter is trained too."""

    def __init__(self, hidden: int = 16, slope: nn.Sequential | None = None) -> None:
        """slope: (N,8+hidden,h,w) to (N,4,h,w); None means three float convolutions."""
        super().__init__()
        self.box_filter = nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=4)
        nn.init.constant_(self.box_filter.weight, 1 / 9)
        self.conv = slope or nn.Sequential(
            nn.Conv2d(4 * 2 + hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 4, 1),
        )

    def forward(
        self, fine: Tensor, base: Tensor, foreground: Tensor, alpha: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Foreground residual (N,3,h,w) and alpha (N,1,h,w) at the size of `base` to the size of `fine`."""
        x, y = _with_grey(base), torch.cat([foreground, alpha], dim=1)
        mean_x, mean_y = self.box_filter(x), self.box_filter(y)
        covariance = self.box_filter(x * y) - mean_x * mean_y
        variance = self.box_filter(x * x) - mean_x * mean_x
        slope = self.conv(torch.cat([covariance, variance, hidden], dim=1))
        return _apply(slope, mean_y - slope * mean_x, fine)


class FastGuidedFilter(nn.Module):
    """The guided filter in closed form, radius 1, zero padding; no parameters, `hidden` is not used."""

    def forward(
        self, fine: Tensor, base: Tensor, foreground: Tensor, alpha: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Foreground residual (N,3,h,w) and alpha (N,1,h,w) at the size of `base` to the size of `fine`."""
        x, y = _with_grey(base), torch.cat([foreground, alpha], dim=1)
        mean_x, mean_y = _box_mean(x), _box_mean(y)
        covariance = _box_mean(x * y) - mean_x * mean_y
        variance = _box_mean(x * x) - mean_x * mean_x
        slope = covariance / (variance + VARIANCE_FLOOR)
        return _apply(slope, mean_y - slope * mean_x, fine)


def _with_grey(image: Tensor) -> Tensor:
    return torch.cat([image, image.mean(dim=1, keepdim=True)], dim=1)


def _box_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def _apply(slope: Tensor, offset: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    size = fine.shape[-2:]
    slope = F.interpolate(slope, size, mode="bilinear", align_corners=False)
    offset = F.interpolate(offset, size, mode="bilinear", align_corners=False)
    foreground, alpha = (slope * _with_grey(fine) + offset).split([3, 1], dim=1)
    return foreground, alpha
