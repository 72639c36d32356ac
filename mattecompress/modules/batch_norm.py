"""Batch normalisation as a module with a text form."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BatchNormConfig:
    """Channels, and the two numbers of batch normalisation."""

    features: int
    eps: float = 1e-5
    momentum: float = 0.1


class BatchNorm2d(nn.BatchNorm2d):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the channels of an (N, C, H, W) tensor."""

    def __init__(self, config: BatchNormConfig) -> None:
        super().__init__(config.features, eps=config.eps, momentum=config.momentum)
        self.config = config

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What inference multiplies and then adds, float64 (C,)."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight.double() / torch.sqrt(self.running_var.double() + self.eps)
        return scale, self.bias.double() - self.running_mean.double() * scale
