"""y' = y + a * f(P(x)): a shortcut over layers that change channels and size, with a learnable scalar factor a.

    f(x; Cin -> Cout) = repeat_{Cout/g}( (g / Cin) * sum_i x[i*g : (i+1)*g] ),  g = gcd(Cin, Cout)
    P: 2x2 average pooling that rounds sizes up, where the layers between have stride 2; else nothing

Source: BiVM equations (9) to (12), whose symbols are lost in our copy of the paper: this is a reconstruction (R) that
agrees with BiMatting's program where that has a shortcut (a = 1).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ElasticShortcutConfig:
    """Channels of x and y, the stride between them, and the factor of a fresh shortcut."""

    inputs: int
    outputs: int
    stride: Literal[1, 2] = 1
    initial: float = 1.0


class ElasticShortcut(nn.Module):
    """Adds a scaled shortcut to what the layers between computed."""

    def __init__(self, config: ElasticShortcutConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = nn.Parameter(torch.full((), config.initial))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y (N,outputs,ceil(H/stride),ceil(W/stride)) and x (N,inputs,H,W) to the shape of y."""
        return y + self.factor * map_shortcut(x, self.config.outputs, self.config.stride)


def map_shortcut(x: Tensor, outputs: int, stride: int = 1) -> Tensor:
    """f(P(x)) of the module's equations: (N,C,H,W) to (N,outputs,ceil(H/stride),ceil(W/stride))."""
    if stride == 2:
        x = F.avg_pool2d(x, 2, ceil_mode=True)
    inputs = x.shape[1]
    width = math.gcd(inputs, outputs)
    if width < inputs:
        first, *others = x.split(width, dim=1)
        x = sum(others, first) * (width / inputs)
    return x if width == outputs else torch.cat([x] * (outputs // width), dim=1)
