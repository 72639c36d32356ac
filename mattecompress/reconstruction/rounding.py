"""w_hat = (clamp(floor(w / s) + h(v) + z, low, high) - z) * s,  h(v) = clamp(sigmoid(v) (zeta - gamma) + gamma, 0, 1)

    v begins where h(v) = w / s - floor(w / s); in the end h is 1 where v >= 0, else 0
    regularizer: sum of 1 - |2 h(v) - 1|^beta, which drives every h to 0 or 1 as beta falls

Both gradients are written out: automatic ones would keep many values for each of a layer's many weights.

Source: AdaRound as BRECQ and QDrop have it; gamma = -0.1, zeta = 1.1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mattecompress.modules.quantizer import FakeQuantize

GAMMA, ZETA = -0.1, 1.1
BETA_FIRST, BETA_LAST = 20.0, 2.0


class _SoftlyRounded(torch.autograd.Function):
    """clamp(floor + h(v), low, high) * s, whose bounds are tensors that meet v."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, floor: Tensor, low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
        share = _share_of(logits)
        ctx.save_for_backward(share, floor, low, high, scale)
        return (floor + share).clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        share, floor, low, high, scale = ctx.saved_tensors
        steps = floor + share
        inside = steps.ge(low).logical_and_(steps.le(high))
        return _slope_at(share).mul_(scale).mul_(gradient).mul_(inside), None, None, None, None


class LearnedRounding(nn.Module):
    """Stands for a quantizer of weights while whether each weight goes up or down is learned; scales stay.

    logits: parameter, float32, of the shape of the weight.
    """

    floor: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        scale, zero_point = (part.detach() for part in quantizer.affine(weight.ndim))
        config = quantizer.config
        self.register_buffer("scale", scale)
        self.register_buffer("low", (config.low - zero_point).to(scale))
        self.register_buffer("high", (config.high - zero_point).to(scale))
        ratio = weight.detach() / scale
        self.register_buffer("floor", ratio.floor())
        rest = ratio - self.floor
        self.logits = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with soft rounding while it learns; `weight` itself was read when this was made."""
        if not self.training:
            return self.rounded()
        soft: Tensor = _SoftlyRounded.apply(self.logits, self.floor, self.low, self.high, self.scale)  # type: ignore[no-untyped-call]
        return soft

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight with hard rounding; the quantizer leaves it as it is."""
        return (self.floor + self.logits.ge(0)).clamp_(self.low, self.high).mul_(self.scale)

    @torch.no_grad()
    def regularizer_gradient(self, beta: float) -> Tensor:
        """Of the regularizer by the logits, and of their shape."""
        share = _share_of(self.logits)
        off = 2 * share - 1
        power = off.abs().log_().mul_(beta - 1).exp_()
        return power.mul_(off.sign_()).mul_(_slope_at(share)).mul_(-2 * beta)


@torch.no_grad()
def _share_of(logits: Tensor) -> Tensor:
    """h, of the shape of the logits: how far each weight is rounded up."""
    return logits.sigmoid().mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)


def _slope_at(share: Tensor) -> Tensor:
    """dh/dv where v yields the share h; 0 where h is 0 or 1."""
    slope = (share - GAMMA).mul_(ZETA - share).div_(ZETA - GAMMA)
    return slope.mul_(share.gt(0).logical_and_(share.lt(1)))


def beta_at(step: int, steps: int, warm_up: float) -> float | None:
    """The regularizer's exponent: none within the warm-up share of the steps, then linear from 20 to 2."""
    start = warm_up * steps
    if step < start:
        return None
    done = (step - start) / max(1.0, steps - start)
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * (1 - done)
