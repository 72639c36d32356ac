"""w_hat = (clamp(floor(w / s) + h(v) + z, low, high) - z) * s,  h(v) = clamp(sigmoid(v) (zeta - gamma) + gamma, 0, 1)

    v begins where h(v) = w / s - floor(w / s); in the end h is 1 where v >= 0, else 0
    regularizer: sum of 1 - |2 h(v) - 1|^beta, which drives every h to 0 or 1 as beta falls

Source: AdaRound as BRECQ and QDrop have it; gamma = -0.1, zeta = 1.1.
"""

import torch
from torch import Tensor, nn

from mattecompress.modules.quantizer import FakeQuantize

GAMMA, ZETA = -0.1, 1.1
BETA_FIRST, BETA_LAST = 20.0, 2.0


class LearnedRounding(nn.Module):
    """Stands for a quantizer of weights while whether each weight goes up or down is learned; scales stay.

    logits: parameter, float32, of the shape of the weight.
    """

    floor: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        scale, zero_point = (part.detach() for part in quantizer.affine(weight.ndim))
        self.low, self.high = quantizer.config.low, quantizer.config.high
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        ratio = weight.detach() / scale
        self.register_buffer("floor", ratio.floor())
        rest = ratio - self.floor
        self.logits = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with soft rounding while it learns; `weight` itself was read when this was made."""
        return self._dequantized(self.share()) if self.training else self.rounded()

    def share(self) -> Tensor:
        """h, of the shape of the weight: how far each weight is rounded up."""
        return (self.logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight with hard rounding; the quantizer leaves it as it is."""
        return self._dequantized(self.logits.ge(0).to(self.floor))

    def regularizer(self, beta: float) -> Tensor:
        """How far the rounding is from hard; a scalar."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def _dequantized(self, up: Tensor) -> Tensor:
        codes = (self.floor + up + self.zero_point).clamp(self.low, self.high)
        return (codes - self.zero_point) * self.scale


def beta_at(step: int, steps: int, warm_up: float) -> float | None:
    """The regularizer's exponent: none within the warm-up share of the steps, then linear from 20 to 2."""
    start = warm_up * steps
    if step < start:
        return None
    done = (step - start) / max(1.0, steps - start)
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * (1 - done)
