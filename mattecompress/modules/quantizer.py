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
Bound = int | Tensor
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
    """x_hat where `chosen` is 1, x where it is 0; x_hat everywhere without it. `low` and `high` bound round(x / s)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound, codes: int, chosen: Tensor | None
    ) -> Tensor:
        steps = (x / scale).round_()
        if chosen is not None:
            steps *= chosen
        result = _clamp(steps, low, high).mul_(scale)
        if chosen is not None:
            result = torch.lerp(x, result, chosen)
        ctx.bounds, ctx.codes = (low, high), codes
        ctx.save_for_backward(x, scale, result, steps)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, result, steps = ctx.saved_tensors
        inside = _inside(gradient, steps, *ctx.bounds)
        to_scale = None
        if ctx.needs_input_grad[1]:
            products = _dot(inside, result - x, scale) + _dot(gradient - inside, result, scale)
            to_scale = products / scale / math.sqrt(x.numel() / scale.numel() * ctx.codes)
        return inside, to_scale, None, None, None, None


def _clamp(steps: Tensor, low: Bound, high: Bound) -> Tensor:
    return torch.clamp(steps, low, high)  # type: ignore[arg-type]


def _inside(gradient: Tensor, steps: Tensor, low: Bound, high: Bound) -> Tensor:
    """The gradient where the steps lie within both bounds, else 0."""
    if isinstance(low, Tensor):
        return gradient * (_clamp(steps, low, high) == steps)
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, low - 0.5, high + 0.5)
    return passed


def _dot(one: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """The sum of products, in the shape of `like`."""
    if like.ndim:
        return (one * other).sum_to_size(like.shape)
    return torch.dot(one.flatten(), other.flatten())


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
        """x_hat, of the shape of `x`; equal to dequantizing `codes(x)`."""
        if torch.is_grad_enabled():
            return self._learnable(x, None)
        scale, low, high = self._limits(x.ndim)
        return _clamp((x / scale).round_(), low, high).mul_(scale)

    def shaped(self, x: Tensor) -> Tensor:
        """What `forward` yields, for a tensor without data."""
        return torch.empty_like(x)

    def partly(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x_hat where `chosen`, of the shape and type of `x`, is 1, and x where it is 0."""
        return self._learnable(x, chosen)

    def _learnable(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        limits = self._limits(x.ndim)
        result: Tensor = _FakeQuantize.apply(x, *limits, self.config.high, chosen)  # type: ignore[no-untyped-call]
        return result

    def _limits(self, axes: int) -> tuple[Tensor, Bound, Bound]:
        """The scale, shaped to meet a tensor of so many axes, and the least and greatest round(x / s) that has a code."""
        scale, zero_point = self.affine(axes)
        if self.config.channels is None:
            zero = int(self.zero_point)
            return scale, self.config.low - zero, self.config.high - zero
        return scale, (self.config.low - zero_point).to(scale), (self.config.high - zero_point).to(scale)

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
