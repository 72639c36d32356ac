"""Batch normalisation as a module with a text form.

Inference is  y = x * scale + shift  with  scale = weight / sqrt(var + eps),  shift = bias - mean * scale, both computed
in float64 and rounded once, so that lowering can write the same two operations with the same constants.
"""

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

    def forward(self, x: Tensor) -> Tensor:
        """The shape and type of x; of the batch's own statistics in training, of the running ones in inference."""
        if self.training:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale, shift = (value[:, None, None].to(wide) for value in self.scale_and_shift())
        return (x * scale + shift).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of inference, float64 (C,)."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight.double() / torch.sqrt(self.running_var.double() + self.eps)
        return scale, self.bias.double() - self.running_mean.double() * scale
