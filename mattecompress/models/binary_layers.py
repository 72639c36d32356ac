"""Layers of BiMatting and BiVM, one-bit or, for the 32-bit twin of the same architecture, in float.

Names and shapes are those of BiMatting's published checkpoints. A layer is a learnable bias, which shifts where the
activation turns, and a convolution; between them stands the sign, which our convolution computes itself.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.modules.elastic_shortcut import ElasticShortcut, ElasticShortcutConfig, map_shortcut


@dataclass(frozen=True)
class Form:
    """What the layers of a network are.

    binary: convolutions are one-bit; else float on float activations, which is what "the full-precision network of
        the same architecture" is taken to mean (R).
    elastic: shortcuts have learnable factors (BiVM); else they are BiMatting's.
    """

    binary: bool = True
    elastic: bool = False


class LearnableBias(nn.Module):
    """x + b_c, b from 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) to the same shape."""
        return x + self.bias


class BinaryLayer(BinaryConv2d):
    """A one-bit convolution with the unused `channel_threshold` that checkpoints hold."""

    def __init__(self, config: BinaryConvConfig) -> None:
        super().__init__(config)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.channel_threshold = nn.Parameter(torch.zeros(1, config.inputs, 1, 1))


class FloatLayer(nn.Conv2d):
    """The same in float."""

    def __init__(self, config: BinaryConvConfig) -> None:
        geometry = (config.inputs, config.outputs, config.kernel, config.stride, config.padding)
        super().__init__(*geometry, bias=config.bias)
        self.channel_threshold = nn.Parameter(torch.zeros(1, config.inputs, 1, 1))


def convolution(
    form: Form, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False
) -> nn.Module:
    """A convolution that keeps the size, up to its stride, of activations that a `LearnableBias` has shifted."""
    config = BinaryConvConfig(
        inputs,
        outputs,
        (kernel, kernel),
        (stride, stride),
        (kernel // 2, kernel // 2),
        bias=bias,
        method="bimatting",
        threshold=False,
    )
    return BinaryLayer(config) if form.binary else FloatLayer(config)


def shifted_convolution(
    form: Form, inputs: int, outputs: int, kernel: int, bias: bool = False
) -> list[nn.Module]:
    """Bias, the place of the sign, convolution."""
    return [LearnableBias(inputs), nn.Identity(), convolution(form, inputs, outputs, kernel, bias=bias)]


def activated_convolution(form: Form, inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """Bias, the place of the sign, convolution, batch norm, bias, PReLU."""
    normalized = [*shifted_convolution(form, inputs, outputs, kernel), nn.BatchNorm2d(outputs)]
    return [*normalized, LearnableBias(outputs), nn.PReLU(outputs)]


class FixedShortcut(nn.Module):
    """y + f(P(x)) of `mattecompress.modules.elastic_shortcut`: a shortcut whose factor is 1."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.stride = stride

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y (N,outputs,ceil(H/stride),ceil(W/stride)) and x (N,C,H,W) to the shape of y."""
        return y + map_shortcut(x, self.outputs, self.stride)


def shortcut(form: Form, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """The shortcut of `form` over layers from `inputs` to `outputs` channels."""
    if not form.elastic:
        return FixedShortcut(outputs, stride)
    return ElasticShortcut(ElasticShortcutConfig(inputs, outputs, 2 if stride == 2 else 1))
