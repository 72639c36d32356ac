"""Which tokens of an image need attention: a score for each, from itself and from the mean of all.

    z  = gelu(W1 norm(x)),  z' = [z_1, mean of z_2 over tokens]          z_1, z_2 the halves of z's channels
    p  = log_softmax(W4 gelu(W3 gelu(W2 z')))                            code
    z  = W1 norm(x),  p = log_softmax(W2 z')                             paper

Source: MEMatte (AAAI 2025), its published program (`code`) and its text (`paper`); after Rao et al., "DynamicViT", 2021,
whose mean is over the tokens that are still kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["code", "paper"]


@dataclass(frozen=True)
class TokenRouterConfig:
    """Channels of a token, and which of the two forms."""

    channels: int
    variant: Variant = "code"


class TokenRouter(nn.Module):
    """Log-probabilities of attention, channel 0 as in the program (the paper has it at 1), and of doing without."""

    def __init__(self, config: TokenRouterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        norm, mix = nn.LayerNorm(width), nn.Linear(width, width)
        if config.variant == "code":
            self.in_conv = nn.Sequential(norm, mix, nn.GELU())
            self.out_conv = nn.Sequential(
                nn.Linear(width, width // 2),
                nn.GELU(),
                nn.Linear(width // 2, width // 4),
                nn.GELU(),
                nn.Linear(width // 4, 2),
                nn.LogSoftmax(dim=-1),
            )
        else:
            self.in_conv = nn.Sequential(norm, mix)
            self.out_conv = nn.Sequential(nn.Linear(width, 2), nn.LogSoftmax(dim=-1))

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """(N,H,W,C) to (N,H,W,2); kept, (N,H,W,1) of zeros and ones, says which tokens the mean is over."""
        local, whole = self.in_conv(x).chunk(2, dim=-1)
        if kept is None:
            mean = whole.mean((1, 2), keepdim=True)
        else:
            mean = (whole * kept).sum((1, 2), keepdim=True) / kept.sum((1, 2), keepdim=True).clamp(min=1)
        scores: Tensor = self.out_conv(torch.cat([local, mean.expand_as(local)], dim=-1))
        return scores

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens."""
        return tokens * sum(weight.numel() for weight in self.parameters() if weight.ndim > 1)
