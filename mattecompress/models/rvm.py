"""Robust Video Matting (Lin et al. 2021, "Robust High-Resolution Video Matting with Temporal Guidance", section 3).

An encoder, LR-ASPP, a decoder with a convolutional GRU on half the channels of each scale, and a guided filter for
frames processed at a reduced size. Parameter names and their order are those of the published checkpoints.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.errors import UserError
from mattecompress.models.guided_filter import DeepGuidedFilter, FastGuidedFilter
from mattecompress.models.mobilenetv3 import MobileNetV3
from mattecompress.models.resnet50 import ResNet50
from mattecompress.options import nearest

Variant = Literal["mobilenetv3", "resnet50"]
Refiner = Literal["deep_guided_filter", "fast_guided_filter"]

HIDDEN = 16
REFINERS: dict[str, Callable[[nn.Sequential | None], nn.Module]] = {
    "deep_guided_filter": lambda slope: DeepGuidedFilter(HIDDEN, slope),
    "fast_guided_filter": lambda slope: FastGuidedFilter(),
}
ASPP_CHANNELS = {"mobilenetv3": 128, "resnet50": 256}
DECODER_CHANNELS = {"mobilenetv3": (80, 40, 32), "resnet50": (128, 64, 32)}


class RefinerError(UserError):
    """No refiner has that name."""


class RVM(nn.Module):
    """The matting network. Frames are RGB in 0..1; states are None on the first frame and fed back afterwards."""

    optional_parts = ("project_seg", "refiner")

    def __init__(self, variant: Variant = "mobilenetv3", refiner: Refiner = "deep_guided_filter") -> None:
        super().__init__()
        self.variant = variant
        self.backbone = MobileNetV3() if variant == "mobilenetv3" else ResNet50()
        *shallow, deepest = self.backbone.channels
        features = (*shallow, ASPP_CHANNELS[variant])
        self.aspp = LRASPP(deepest, features[-1])
        self.decoder = RecurrentDecoder(features, DECODER_CHANNELS[variant])
        self.project_mat = Projection(HIDDEN, 4)
        self.project_seg = Projection(HIDDEN, 1)
        self.refiner = build_refiner(refiner)

    def forward(
        self,
        src: Tensor,
        r1: Tensor | None = None,
        r2: Tensor | None = None,
        r3: Tensor | None = None,
        r4: Tensor | None = None,
        downsample_ratio: float = 1,
        segmentation_pass: bool = False,
    ) -> list[Tensor]:
        """Matting: [fgr, pha, r1..r4]; segmentation pass: [logits, r1..r4].

        `src` is (B,3,H,W), or (B,T,3,H,W) for T consecutive frames; fgr has 3 and pha 1 channel in the same layout,
        both in 0..1. States are (B,C,h,w) at 1/2, 1/4, 1/8, 1/16 of the reduced frame, those of the last frame.
        Logits are at the size of the reduced frame, and the refiner only runs when `downsample_ratio` is not 1.
        """
        frames = src.shape[1] if src.ndim == 5 else None
        fine = src if frames is None else src.flatten(0, 1)
        base = fine if downsample_ratio == 1 else reduce(fine, downsample_ratio)
        f1, f2, f3, f4 = self.backbone(base)
        hidden, states = self.decoder(base, (f1, f2, f3, self.aspp(f4)), (r1, r2, r3, r4), frames)
        if segmentation_pass:
            return [lay_out(self.project_seg(hidden), frames), *states]
        residual, alpha = self.project_mat(hidden).split([3, 1], dim=1)
        if downsample_ratio != 1:
            residual, alpha = self.refiner(fine, base, residual, alpha, hidden)
        foreground = (residual + fine).clamp(0, 1)
        return [lay_out(foreground, frames), lay_out(alpha.clamp(0, 1), frames), *states]


class LRASPP(nn.Module):
    """Reduce the deepest feature and gate its channels by their global context."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.aspp1 = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.aspp2 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H,W)."""
        y: Tensor = self.aspp1(x) * self.aspp2(x)
        return y


class Recurrence(nn.Module):
    """Base of the recurrent units: a step a frame, the state carried along."""

    def forward(
        self, x: Tensor, h: Tensor | None, frames: int | None = None, *context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x is (B,C,H,W), or (B*frames,C,H,W) with time inner; h is (B,C,H,W). Returns x's layout and the last h.

        context: further tensors laid out as x, which each step reads its part of.
        """
        if frames is None:
            h = self.step(x, torch.zeros_like(x) if h is None else h, *context)
            return h, h
        outputs = []
        for part, *others in zip(*(_by_frame(t, frames) for t in (x, *context)), strict=True):
            h = self.step(part, torch.zeros_like(part) if h is None else h, *others)
            outputs.append(h)
        assert h is not None
        return torch.stack(outputs, dim=1).flatten(0, 1), h

    def step(self, x: Tensor, h: Tensor, *context: Tensor) -> Tensor:
        """The next state of one frame; all (B,C,H,W)."""
        raise NotImplementedError


class ConvGRU(Recurrence):
    """r, z = sigmoid(ih([x, h]));  c = tanh(hh([x, r*h]));  h' = (1 - z)*h + z*c, the output and the new state."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ih = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, padding=1), nn.Tanh())

    def step(self, x: Tensor, h: Tensor, *context: Tensor) -> Tensor:
        """One frame; all (B,C,H,W)."""
        return gated_step(x, h, self.ih, self.hh)


def gated_step(
    x: Tensor, h: Tensor, gates: Callable[[Tensor], Tensor], candidate: Callable[[Tensor], Tensor]
) -> Tensor:
    """(1 - z)*h + z*c with r, z = gates([x, h]) and c = candidate([x, r*h]); all (B,C,H,W)."""
    reset, update = gates(torch.cat([x, h], dim=1)).split(x.shape[1], dim=1)
    proposed = candidate(torch.cat([x, reset * h], dim=1))
    y: Tensor = (1 - update) * h + update * proposed
    return y


class HalfRecurrent(nn.Module):
    """Base of the blocks that pass the second half of their channels through a GRU."""

    gru: Recurrence

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.recurrent = channels // 2

    def recur(
        self, x: Tensor, h: Tensor | None, frames: int | None, *context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N,C,H,W) and the state (B,C/2,H,W) to the same shapes; context as of `Recurrence`."""
        kept, remembered = x.split(self.recurrent, dim=1)
        remembered, h = self.gru(remembered, h, frames, *context)
        return torch.cat([kept, remembered], dim=1), h


class BottleneckBlock(HalfRecurrent):
    """The decoder's deepest block: recurrence only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gru = ConvGRU(channels // 2)

    def forward(self, x: Tensor, h: Tensor | None, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N,C,H,W) and the state (B,C/2,H,W) to the same shapes."""
        return self.recur(x, h, frames)


class UpsamplingBlock(HalfRecurrent):
    """Double the size, join the skip feature and the small image, convolve, recur."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__(outputs)
        self.conv = nn.Sequential(*_convolution(inputs + skip + 3, outputs))
        self.gru = ConvGRU(outputs // 2)

    def forward(
        self, x: Tensor, feature: Tensor, image: Tensor, h: Tensor | None, frames: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (N,inputs,ceil(H/2),ceil(W/2)); feature and image at (H,W); returns (N,outputs,H,W) and the state."""
        x = torch.cat([double(x, image), feature, image], dim=1)
        return self.recur(self.conv(x), h, frames)


class OutputBlock(nn.Module):
    """Double the size, join the image, two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_convolution(inputs + 3, outputs), *_convolution(outputs, outputs))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """x (N,inputs,ceil(H/2),ceil(W/2)) and image (N,3,H,W) to (N,outputs,H,W)."""
        y: Tensor = self.conv(torch.cat([double(x, image), image], dim=1))
        return y


class RecurrentDecoder(nn.Module):
    """From 1/16 of the frame back to its size, one block a scale."""

    def __init__(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        f1, f2, f3, f4 = features
        d3, d2, d1 = outputs
        self.avgpool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.decode4 = BottleneckBlock(f4)
        self.decode3 = UpsamplingBlock(f4, f3, d3)
        self.decode2 = UpsamplingBlock(d3, f2, d2)
        self.decode1 = UpsamplingBlock(d2, f1, d1)
        self.decode0 = OutputBlock(d1, HIDDEN)

    def forward(
        self,
        image: Tensor,
        features: tuple[Tensor, Tensor, Tensor, Tensor],
        states: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        frames: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Image (N,3,H,W), its features and states, shallow first, to (N,16,H,W) and the new states."""
        f1, f2, f3, f4 = features
        s1 = self.avgpool(image)
        s2 = self.avgpool(s1)
        s3 = self.avgpool(s2)
        x, r4 = self.decode4(f4, states[3], frames)
        x, r3 = self.decode3(x, f3, s3, states[2], frames)
        x, r2 = self.decode2(x, f2, s2, states[1], frames)
        x, r1 = self.decode1(x, f1, s1, states[0], frames)
        return self.decode0(x, image), (r1, r2, r3, r4)


class Projection(nn.Module):
    """A 1x1 convolution onto the outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,H,W)."""
        y: Tensor = self.conv(x)
        return y


def mobilenetv3(refiner: Refiner = "deep_guided_filter") -> RVM:
    """RVM on MobileNetV3-Large: 3.7 M parameters."""
    return RVM("mobilenetv3", refiner)


def resnet50(refiner: Refiner = "deep_guided_filter") -> RVM:
    """RVM on ResNet-50: 26.9 M parameters."""
    return RVM("resnet50", refiner)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def build_refiner(name: str, slope: nn.Sequential | None = None) -> nn.Module:
    """The guided filter of that name; `slope` as of `DeepGuidedFilter`.

    Raises:
        RefinerError: there is none.
    """
    if name not in REFINERS:
        raise RefinerError(f"no refiner is called '{name}'{nearest(name, REFINERS)}")
    return REFINERS[name](slope)


def double(x: Tensor, image: Tensor) -> Tensor:
    """Twice the size, cut to the size of `image` (which is one less where that was odd)."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x[:, :, : image.shape[2], : image.shape[3]]


def reduce(x: Tensor, ratio: float) -> Tensor:
    """A frame at `ratio` of its size, rounded down."""
    return F.interpolate(
        x, scale_factor=ratio, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )


def lay_out(x: Tensor, frames: int | None) -> Tensor:
    """(B*frames,C,H,W) to (B,frames,C,H,W); as it is where `frames` is None."""
    return x if frames is None else x.unflatten(0, (-1, frames))


def _by_frame(x: Tensor, frames: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.unflatten(0, (-1, frames)).unbind(1)
    return parts
