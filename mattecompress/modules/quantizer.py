"""x_hat = (q - z) * s,  q = clamp(round(x / s) + z, low, high), halves to even

    dx_hat/dx = 1 where round(x / s) + z lies in [low, high], else 0
    dx_hat/ds = round(x / s) - x / s there, else q - z; times 1 / sqrt(n * high), n the number of x that share s

Unsigned codes with a zero point, [0, 2^b - 1], or signed ones without, [-2^(b-1), 2^(b-1) - 1].
Source: the uniform affine quantizer of BRECQ, QDrop and PTQ4VM eq. (3); the gradient of s is LSQ's.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mattecompress.options import OptionError

SMALLEST_SCALE = 1e-8
BITS = range(2, 9)


def check_bits(bits: int, what: str) -> None:
    """Raise `OptionError` unless a quantizer can have that many bits."""
    if bits not in BITS:
        raise OptionError(f"{what}={bits}: a quantizer has {BITS[0]} to {BITS[-1]} bits")


@dataclass(frozen=True)
class QuantizerConfig:
    """What the codes of a quantizer look like.

    bits: 2 to 8.
    symmetric: signed codes and zero point 0, else unsigned codes.
    channels: a scale and zero point for each index of axis 0; None means one for the whole tensor.
    """

    bits: int = 8
    symmetric: bool = False
    channels: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, "bits")
        if self.channels is not None and self.channels < 1:
            raise OptionError(f"channels={self.channels}: expected at least 1")

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The largest code."""
        return self.low + (1 << self.bits) - 1

    def affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The scale (float32) and zero point (int32) with which codes just span [low, high] and 0.

        Signed codes get the smallest scale that reaches both ends.
        """
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            scale = torch.maximum(low / self.low, high / self.high).clamp_min(SMALLEST_SCALE)
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        scale = ((high - low) / self.high).clamp_min(SMALLEST_SCALE)
        return scale, (-low / scale).round().clamp(0, self.high).to(torch.int32)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        ratio = x / scale
        shifted = ratio.round().add_(zero_point)
        steps = shifted.clamp(low, high)
        inside = (steps == shifted).to(x.dtype)
        steps -= zero_point
        ctx.high, ctx.shape = high, scale.shape
        ctx.save_for_backward(inside, torch.addcmul(steps, ratio, inside, value=-1))
        return steps * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inside, by_scale = ctx.saved_tensors
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        shared = gradient.numel() / math.prod(ctx.shape)
        to_scale = (gradient * by_scale).sum_to_size(ctx.shape) / math.sqrt(shared * ctx.high)
        return to_x, to_scale, None, None, None


class FakeQuantize(nn.Module):
    """Rounds a float32 tensor of any shape to what its codes can say; the scale can be learned.

    scale: parameter, float32, () or (channels,); what is used is its magnitude, at least 1e-8.
    zero_point: buffer, int32, of the same shape; the code of 0.
    """

    zero_point: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = () if config.channels is None else (config.channels,)
        self.scale = nn.Parameter(torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """x_hat, of the shape of `x`; equal to dequantizing `codes(x)`, bit for bit."""
        scale, zero_point = self.affine(x.ndim)
        low, high = self.config.low, self.config.high
        if not torch.is_grad_enabled():
            return (x / scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)
        result: Tensor = _FakeQuantize.apply(x, scale, zero_point, low, high)  # type: ignore[no-untyped-call]
        return result

    def codes(self, x: Tensor) -> Tensor:
        """q, of the shape of `x`: int8 where signed, else uint8; of unsigned ones `matte::quantize` is the same."""
        scale, zero_point = self.affine(x.ndim)
        codes = ((x / scale).round() + zero_point).clamp(self.config.low, self.config.high)
        return codes.to(torch.int8 if self.config.symmetric else torch.uint8)

    def affine(self, axes: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point in force, shaped to meet a tensor of so many axes."""
        shape = () if self.config.channels is None else (-1, *[1] * (axes - 1))
        scale = self.scale.abs().clamp_min(SMALLEST_SCALE)
        return scale.reshape(shape), self.zero_point.reshape(shape)

    @torch.no_grad()
    def set_affine(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take a scale and zero point, each of as many elements as there are channels."""
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.zero_point.copy_(zero_point.reshape(self.zero_point.shape))
