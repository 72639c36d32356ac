"""MobileNetV3-Large as a feature pyramid (Howard et al. 2019, "Searching for MobileNetV3", table 1).

The last stage trades its stride for dilation 2, so the deepest feature stays at 1/16 of the input. Parameter names
are torchvision's, without the classifier.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TAPS = (1, 3, 6, 16)
CHANNELS = (16, 24, 40, 960)


class Stage(NamedTuple):
    """One row of the paper's table: an inverted residual; `squeeze` 0 means no squeeze-excitation."""

    inputs: int
    expanded: int
    outputs: int
    kernel: int
    squeeze: int
    hardswish: bool
    stride: int
    dilation: int


STAGES = (
    Stage(16, 16, 16, 3, 0, False, 1, 1),
    Stage(16, 64, 24, 3, 0, False, 2, 1),
    Stage(24, 72, 24, 3, 0, False, 1, 1),
    Stage(24, 72, 40, 5, 24, False, 2, 1),
    Stage(40, 120, 40, 5, 32, False, 1, 1),
    Stage(40, 120, 40, 5, 32, False, 1, 1),
    Stage(40, 240, 80, 3, 0, True, 2, 1),
    Stage(80, 200, 80, 3, 0, True, 1, 1),
    Stage(80, 184, 80, 3, 0, True, 1, 1),
    Stage(80, 184, 80, 3, 0, True, 1, 1),
    Stage(80, 480, 112, 3, 120, True, 1, 1),
    Stage(112, 672, 112, 3, 168, True, 1, 1),
    Stage(112, 672, 160, 5, 168, True, 1, 2),
    Stage(160, 960, 160, 5, 240, True, 1, 2),
    Stage(160, 960, 160, 5, 240, True, 1, 2),
)


class ConvNormActivation(nn.Sequential):
    """A convolution that keeps the size (up to its stride), batch norm, and an activation if one is given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        activation: nn.Module | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        padding = (kernel - 1) // 2 * dilation
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        ]
        super().__init__(*layers, *([] if activation is None else [activation]))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the channel means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) to the same shape."""
        y: Tensor = x * self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))
        return y


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, optional squeeze-excitation, project 1x1; plus the input where shapes allow."""

    def __init__(self, stage: Stage, residual: bool) -> None:
        super().__init__()
        activation = nn.Hardswish if stage.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if stage.expanded != stage.inputs:
            layers.append(ConvNormActivation(stage.inputs, stage.expanded, 1, activation()))
        layers.append(
            ConvNormActivation(
                stage.expanded,
                stage.expanded,
                stage.kernel,
                activation(),
                stage.stride,
                stage.dilation,
                groups=stage.expanded,
            )
        )
        if stage.squeeze:
            layers.append(SqueezeExcitation(stage.expanded, stage.squeeze))
        layers.append(ConvNormActivation(stage.expanded, stage.outputs, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,ceil(H/stride),ceil(W/stride))."""
        y: Tensor = x + self.block(x) if self.residual else self.block(x)
        return y


class MobileNetV3(nn.Module):
    """RGB in 0..1 to features of 16, 24, 40 and 960 channels at 1/2, 1/4, 1/8 and 1/16 of its size."""

    channels = CHANNELS
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNormActivation(3, STAGES[0].inputs, 3, nn.Hardswish(), stride=2)]
        layers += [InvertedResidual(s, residual=s.stride == 1 and s.inputs == s.outputs) for s in STAGES]
        layers.append(ConvNormActivation(STAGES[-1].outputs, CHANNELS[-1], 1, nn.Hardswish()))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the four features, shallow first; odd sizes round up at each halving."""
        x = (x - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                taps.append(x)
        return tuple(taps)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
