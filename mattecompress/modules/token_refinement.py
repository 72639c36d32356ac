"""What a token gets instead of attention: a look at its neighbours, and channels weighted by the whole image.

    v = W2 gelu(dw(gelu(W1 x))),  y = v (1 + g(v))                        code
    v = W2 dw(W1 x),              y = v g(v)                              paper
    g(v) = sigmoid(conv over channels of the mean of v over tokens)

with dw a depthwise 5x5 convolution on the grid; W1 doubles the channels and W2 halves them.

Source: MEMatte (AAAI 2025), its published program (`code`) and its text (`paper`); g is that of Wang et al., "ECA-Net",
2020.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.modules.token_router import Variant

EXPANSION, KERNEL = 2, 5


@dataclass(frozen=True)
class TokenRefinementConfig:
    """Channels of a token, and which of the two forms."""

    channels: int
    variant: Variant = "code"


class ChannelGate(nn.Module):
    """g(v) of the module's equations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int(abs(math.log2(channels) / 2 + 0.5)) | 1
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) to (N,1,1,C) in 0..1."""
        gate: Tensor = self.conv(x.mean((1, 2))[:, None]).sigmoid()
        return gate[:, :, None]


class TokenRefinement(nn.Module):
    """The lightweight branch of a routed block."""

    def __init__(self, config: TokenRefinementConfig) -> None:
        super().__init__()
        self.config = config
        inner = EXPANSION * config.channels
        self.fc1 = nn.Linear(config.channels, inner)
        self.dwconv = nn.Conv2d(inner, inner, KERNEL, padding=KERNEL // 2, groups=inner)
        self.fc2 = nn.Linear(inner, config.channels)
        self.eca = ChannelGate(config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) to the same shape."""
        code = self.config.variant == "code"
        u = self.fc1(x)
        u = self.dwconv((F.gelu(u) if code else u).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        v = self.fc2(F.gelu(u) if code else u)
        gate: Tensor = self.eca(v)
        result: Tensor = v + v * gate if code else v * gate
        return result

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens, without those of the gate."""
        return tokens * sum(layer.weight.numel() for layer in (self.fc1, self.dwconv, self.fc2))
