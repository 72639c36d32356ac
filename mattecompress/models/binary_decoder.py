"""The decoder of BiMatting and BiVM: a coarse matte at 1/16, then closer work where that is not certain.

M is 1 around the boundary of the coarse matte (`mattecompress.modules.spatial_mask`), resized bilinearly to each scale.
Every layer at finer scales is M * g3(x) + g1(x), g3 with a 3x3 and g1 with a 1x1 convolution (BiVM equation (17)), the
gates of the GRU too; so its r and z lie in (0, 2), its candidate in (-2, 2), and states are not bounded by 1.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.models.binary_layers import (
    Form,
    LearnableBias,
    activated_convolution,
    shifted_convolution,
)
from mattecompress.models.rvm import HalfRecurrent, Recurrence, double, gated_step
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig

COARSE = 16
Activation = Literal["sigmoid", "tanh"]


class BinaryLRASPP(nn.Module):
    """Reduce the deepest feature and gate its channels by their global context, both one-bit."""

    def __init__(self, inputs: int, outputs: int, form: Form) -> None:
        super().__init__()
        self.aspp1 = nn.Sequential(*activated_convolution(form, inputs, outputs, 1))
        gate = shifted_convolution(form, inputs, outputs, 1)
        self.aspp2 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *gate, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H,W)."""
        y: Tensor = self.aspp1(x) * self.aspp2(x)
        return y


class BinaryGRU(Recurrence):
    """RVM's convolutional GRU with one-bit convolutions."""

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        self.ih = nn.Sequential(*_gate(form, channels, 2 * channels), nn.Sigmoid())
        self.hh = nn.Sequential(*_gate(form, channels, channels), nn.Tanh())

    def step(self, x: Tensor, h: Tensor, *context: Tensor) -> Tensor:
        """One frame; all (B,C,H,W)."""
        return gated_step(x, h, self.ih, self.hh)


class MaskedGRU(Recurrence):
    """The same, each gate a masked sum with a bias of its own behind each convolution."""

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        self.ih = _biased_gate(form, channels, 2 * channels, 3, nn.Sigmoid())
        self.ih_1x1 = _biased_gate(form, channels, 2 * channels, 1, nn.Sigmoid())
        self.hh = _biased_gate(form, channels, channels, 3, nn.Tanh())
        self.hh_1x1 = _biased_gate(form, channels, channels, 1, nn.Tanh())

    def step(self, x: Tensor, h: Tensor, *context: Tensor) -> Tensor:
        """One frame; x and h (B,C,H,W), and the mask (B,1,H,W)."""
        (mask,) = context

        def gates(y: Tensor) -> Tensor:
            return masked_sum(mask, self.ih(y), self.ih_1x1(y))

        def candidate(y: Tensor) -> Tensor:
            return masked_sum(mask, self.hh(y), self.hh_1x1(y))

        return gated_step(x, h, gates, candidate)


class CoarseBlock(HalfRecurrent):
    """The deepest block: recurrence, a coarse matte, and the mask of where it is not certain."""

    def __init__(self, channels: int, form: Form, mask: SpatialMaskConfig) -> None:
        super().__init__(channels)
        self.gru = BinaryGRU(channels // 2, form)
        self.conv = nn.Sequential(*activated_convolution(form, channels, COARSE, 3))
        self.mask = SpatialMask(mask)

    def forward(
        self, x: Tensor, h: Tensor | None, frames: int | None, head: nn.Conv2d
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N,C,H,W), the state (B,C/2,H,W) and the network's last layer to the output (N,C,H,W), the new state, the
        coarse foreground residual and alpha (N,4,H,W) before their clamps, and the mask (N,1,H,W)."""
        x, h = self.recur(x, h, frames)
        coarse = F.conv2d(self.conv(x), head.weight, head.bias)
        return x, h, coarse, self.mask(coarse[:, 3:])


class SparseUpsamplingBlock(HalfRecurrent):
    """Double the size, join the skip feature and the small image, convolve and recur under the mask."""

    def __init__(self, inputs: int, skip: int, outputs: int, form: Form) -> None:
        super().__init__(outputs)
        joined = inputs + skip + 3
        self.conv = nn.Sequential(*activated_convolution(form, joined, outputs, 3))
        self.conv_1x1 = nn.Sequential(*activated_convolution(form, joined, outputs, 1))
        self.gru = MaskedGRU(outputs // 2, form)

    def forward(
        self, x: Tensor, feature: Tensor, image: Tensor, h: Tensor | None, frames: int | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (N,inputs,ceil(H/2),ceil(W/2)); feature and image at (H,W); the mask at 1/16 of the frame; returns
        (N,outputs,H,W) and the state."""
        mask = _resize(mask, image)
        x = torch.cat([double(x, image), feature, image], dim=1)
        return self.recur(masked_sum(mask, self.conv(x), self.conv_1x1(x)), h, frames, mask)


class SparseOutputBlock(nn.Module):
    """Double the size, join the image, then a one-bit and a float convolution under the mask."""

    def __init__(self, inputs: int, outputs: int, form: Form) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_output_layers(form, inputs + 3, outputs, 3))
        self.conv_1x1 = nn.Sequential(*_output_layers(form, inputs + 3, outputs, 1))

    def forward(self, x: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """x (N,inputs,ceil(H/2),ceil(W/2)), image (N,3,H,W) and the mask at 1/16 to (N,outputs,H,W)."""
        x = torch.cat([double(x, image), image], dim=1)
        return masked_sum(_resize(mask, image), self.conv(x), self.conv_1x1(x))


class SparseDecoder(nn.Module):
    """From 1/16 of the frame back to its size, one block a scale."""

    def __init__(
        self, features: tuple[int, ...], outputs: tuple[int, ...], form: Form, mask: SpatialMaskConfig
    ) -> None:
        super().__init__()
        f1, f2, f3, f4 = features
        d3, d2, d1, d0 = outputs
        self.avgpool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.decode4 = CoarseBlock(f4, form, mask)
        self.decode3 = SparseUpsamplingBlock(f4, f3, d3, form)
        self.decode2 = SparseUpsamplingBlock(d3, f2, d2, form)
        self.decode1 = SparseUpsamplingBlock(d2, f1, d1, form)
        self.decode0 = SparseOutputBlock(d1, d0, form)

    def forward(
        self,
        image: Tensor,
        features: tuple[Tensor, Tensor, Tensor, Tensor],
        states: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        frames: int | None,
        head: nn.Conv2d,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Image (N,3,H,W), its features and states, shallow first, and the network's last layer, to (N,16,H,W), the
        coarse foreground residual and alpha (N,4,h,w) at 1/16, and the new states."""
        f1, f2, f3, f4 = features
        s1 = self.avgpool(image)
        s2 = self.avgpool(s1)
        s3 = self.avgpool(s2)
        x, r4, coarse, mask = self.decode4(f4, states[3], frames, head)
        x, r3 = self.decode3(x, f3, s3, states[2], frames, mask)
        x, r2 = self.decode2(x, f2, s2, states[1], frames, mask)
        x, r1 = self.decode1(x, f1, s1, states[0], frames, mask)
        return self.decode0(x, image, mask), coarse, (r1, r2, r3, r4)


def masked_sum(mask: Tensor, close: Tensor, everywhere: Tensor) -> Tensor:
    """M * close + everywhere; the mask is (N,1,H,W), the others (N,C,H,W)."""
    return mask * close + everywhere


def _gate(form: Form, channels: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    return shifted_convolution(form, 2 * channels, outputs, kernel, bias=True)


def _biased_gate(
    form: Form, channels: int, outputs: int, kernel: int, activation: nn.Module
) -> nn.Sequential:
    return nn.Sequential(*_gate(form, channels, outputs, kernel), LearnableBias(outputs), activation)


def _output_layers(form: Form, inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    first = [*shifted_convolution(form, inputs, outputs, kernel), nn.BatchNorm2d(outputs), nn.ReLU()]
    second = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [*first, second, nn.BatchNorm2d(outputs), nn.ReLU()]


def _resize(mask: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(mask, image.shape[-2:], mode="bilinear", align_corners=False)
