"""One-bit convolution in its trainable form, after five papers.

    y = scale_o * (B_w(w) (*) B_a(x)) + bias_o

with the latent float weight w, B_w in {-1, +1}, zeros (or ones) padded after B_a, and sign(0) = +1 everywhere. The
sum is an exact integer; `scale` multiplies it afterwards, as in the lowered form. Slopes are what stands in for the
derivative: of B_a, and of the scaled weight scale * B_w.

    method     B_w, scale and slope                        B_a and slope                  tensors besides weight, bias
    bnn        sign(w); 1; slope 1                         sign(x); [|x| <= 1]            none
    dorefa     sign(w); mean|w| of the layer; slope 1      round(clip(x,0,1)); [0<=x<=1]  none
    react      sign(w); mean|w_o|; slope [|w| <= 1]        sign(x + b_c); poly(x + b_c)   activation_bias b (C,), from 0
    recu       sign(v); learnable; slope 1 at v            sign(x); poly(x / std(x))      scale (O,1,1), tau ()
    bimatting  sign(c); mean|c_o|; slope [|c| <= 1]        sign(x + b_c); [|x + b_c| <= 1]  activation_bias b (C,), from 0

With two-bit activations dorefa has B_a = round(3 clip(x,0,1)) in 0..3, slope 3 [0<=x<=1] and mean|w| / 3 as scale.

    poly(x) = max(0, 2 - 2|x|)
    c = w_o - mean(w_o)
    v = clamp(u, -Q, Q),  u = 2 sqrt(2) * (w_o - mean(w_o)) / std(w_o),  Q = -mean|u| * ln(2 - 2 tau)

Sources: Hubara et al. 2016 (bnn), Zhou et al. 2016 (dorefa), Liu et al. 2020 (react), Xu et al. 2021 (recu), Xu
et al. 2023 (bimatting). The scales of dorefa, react and bimatting carry no gradient; that of recu starts from
U(0, 1), or from the least-squares fit of scale * B_w to the given weight. Our choice in recu: mean and std of w are
per output channel, mean|u| is over the layer, std(x) is per sample and only in training, and both are
sqrt(var + 1e-5) of the population.

BiMatting's program has sign(0) = 0; ours is +1. Where a network adds b_c itself, `threshold` is false.

Not part of the layer: ReActNet's shortcuts and RPReLU, and the Hardtanh that bnn and recu put between layers. A trainer
calls `settle` behind each step, for bnn's bounds and recu's schedule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.facts import Precision

Method = Literal["bnn", "dorefa", "recu", "react", "bimatting"]
THRESHOLDED = ("react", "bimatting")
"""Methods that learn where an activation turns from -1 to +1."""


SMALLEST_SCALE = 1e-20
"""A filter of zeros keeps this scale, so that its gradient survives the division by it."""
_EPSILON = 1e-5
_TAU_RANGE = (0.85, 0.99)


@dataclass(frozen=True)
class BinaryConvConfig:
    """Shape of the convolution, how it is binarized, and what padded taps count.

    kernel, stride, padding, dilation: (vertical, horizontal), in pixels.
    border: 0, padded taps count 0, as in the float network; 1, they act as +1.
    threshold: react and bimatting learn an activation bias; false where the network adds one before the layer.
    activations: bits of an activation; 2 with dorefa only.

    Raises:
        ValueError: two-bit activations with another method.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    method: Method = "bnn"
    border: Literal[0, 1] = 0
    threshold: bool = True
    activations: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.activations > 1 and self.method != "dorefa":
            raise ValueError(f"{self.method} has no {self.activations}-bit activations: dorefa has")

    @property
    def levels(self) -> int:
        """The largest activation, as `BinaryConv2d.binary_input` gives it."""
        return 2**self.activations - 1

    @property
    def is_depthwise(self) -> bool:
        """Every channel has its own filter."""
        return self.groups == self.inputs == self.outputs


class BinaryConv2d(nn.Module):
    """A convolution of one-bit or two-bit activations with one-bit weights; see the module's equations.

    A fresh layer draws its weight from a generator of its own: equal configurations start equal.
    """

    precision = Precision(1, 1)
    weight: nn.Parameter
    bias: nn.Parameter | None
    activation_bias: nn.Parameter | None
    scale: nn.Parameter | None
    tau: Tensor | None

    def __init__(self, config: BinaryConvConfig) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(0)
        fan_in = config.inputs // config.groups * math.prod(config.kernel)
        shape = (config.outputs, config.inputs // config.groups, *config.kernel)
        latent = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
        recu, shifted = config.method == "recu", config.method in THRESHOLDED and config.threshold
        self.weight = nn.Parameter(latent)
        self.bias = nn.Parameter(torch.zeros(config.outputs)) if config.bias else None
        self.activation_bias = nn.Parameter(torch.zeros(config.inputs)) if shifted else None
        scale = torch.rand(config.outputs, 1, 1, generator=generator)
        self.scale = nn.Parameter(scale) if recu else None
        self.register_buffer("tau", torch.tensor(_TAU_RANGE[0]) if recu else None)

    @classmethod
    def from_float(cls, config: BinaryConvConfig, weight: Tensor, bias: Tensor | None) -> "BinaryConv2d":
        """The layer on a trained float32 weight (O,I,KH,KW) and bias (O,); recu's scale is fitted to the weight."""
        layer = cls(config)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
            if layer.scale is not None:
                layer.scale.copy_(_per_filter(weight * layer.binary_weight()))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) to (N,O,OH,OW), both float."""
        y = self.integers(x) * self.output_scale()
        return y if self.bias is None else y + self.bias[:, None, None]

    def integers(self, x: Tensor) -> Tensor:
        """The sum before scale and bias: integers held in floats, (N,O,OH,OW)."""
        config = self.config
        bits, padding = self.binary_input(x), config.padding
        if config.border:
            around = (padding[1], padding[1], padding[0], padding[0])
            bits, padding = F.pad(bits, around, value=float(config.levels)), (0, 0)
        total = F.conv2d(
            bits, self.binary_weight(), None, config.stride, padding, config.dilation, config.groups
        )
        return _Nearest.apply(total)  # type: ignore[no-any-return, no-untyped-call]

    def shaped(self, x: Tensor) -> Tensor:
        """An empty result, for those who ask for its shape."""
        config = self.config
        weight = x.new_empty(self.weight.shape)
        return F.conv2d(x, weight, None, config.stride, config.padding, config.dilation, config.groups)

    def binary_input(self, x: Tensor) -> Tensor:
        """-1 and +1, or 0 to `config.levels` for dorefa, in the shape of x."""
        match self.config.method:
            case "bnn":
                return sign(x, clip_slope)
            case "dorefa":
                return _Codes.apply(x, self.config.levels)  # type: ignore[no-any-return, no-untyped-call]
            case "react":
                return sign(self._shifted(x), polynomial_slope)
            case "bimatting":
                return sign(self._shifted(x), clip_slope)
            case "recu":
                return sign(_standardize_samples(x) if self.training else x, polynomial_slope)

    def binary_weight(self) -> Tensor:
        """-1 and +1, (O,I,KH,KW)."""
        match self.config.method:
            case "bnn":
                return sign(self.weight, identity_slope)
            case "dorefa":
                return sign(self._undo_scale(self.weight), identity_slope)
            case "react":
                return sign(self._undo_scale(self.weight), clip_slope)
            case "bimatting":
                return sign(self._undo_scale(centred(self.weight)), clip_slope)
            case "recu":
                assert self.tau is not None
                return sign(rectified_clamp(self.weight, self.tau), identity_slope)

    def output_scale(self) -> Tensor:
        """What multiplies the integers: (O,1,1), or () where it is one number for the layer."""
        return self._weight_scale() / self.config.levels

    def _weight_scale(self) -> Tensor:
        match self.config.method:
            case "bnn":
                return self.weight.new_ones(())
            case "dorefa":
                return self.weight.detach().abs().mean().clamp_min(SMALLEST_SCALE)
            case "react":
                return _per_filter(self.weight.detach().abs()).clamp_min(SMALLEST_SCALE)
            case "bimatting":
                return _per_filter(centred(self.weight.detach()).abs()).clamp_min(SMALLEST_SCALE)
            case "recu":
                assert self.scale is not None
                return self.scale

    def threshold(self) -> Tensor | None:
        """x counts as +1 from here on, (C,); None for 0, or where activations are 0 and 1."""
        return None if self.activation_bias is None else -self.activation_bias.detach()

    @property
    def encoding(self) -> Literal["signs", "units"]:
        """What a bit of the activations is: -1 and +1, or 0 and 1."""
        return "units" if self.config.method == "dorefa" else "signs"

    @torch.no_grad()
    def settle(self, progress: float) -> None:
        """What a method asks for behind each optimizer step, at `progress` in 0..1 of the training.

        The latent weight of bnn is brought back to [-1, 1], recu's tau moves on; others are left alone.
        """
        if self.config.method == "bnn":
            self.weight.clamp_(-1, 1)
        if self.tau is not None:
            self.tau.fill_(recu_tau(progress))

    def _shifted(self, x: Tensor) -> Tensor:
        return x if self.activation_bias is None else x + self.activation_bias[:, None, None]

    def _undo_scale(self, weight: Tensor) -> Tensor:
        """The weight, with a gradient divided by the scale: slopes are of scale * B_w, not of B_w."""
        scale = self._weight_scale()
        factor = (1 / scale).unsqueeze(-1) if scale.ndim else 1 / scale
        return _ScaleGradient.apply(weight, factor)  # type: ignore[no-any-return, no-untyped-call]


def sign(x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """-1 or +1 by sign, +1 at 0; backward multiplies by slope(x)."""
    return _Sign.apply(x, slope)  # type: ignore[no-any-return, no-untyped-call]


def identity_slope(x: Tensor) -> Tensor:
    """1 everywhere."""
    return torch.ones_like(x)


def clip_slope(x: Tensor) -> Tensor:
    """1 where |x| <= 1, else 0: BiVM equation (2)."""
    return (x.abs() <= 1).to(x.dtype)


def polynomial_slope(x: Tensor) -> Tensor:
    """max(0, 2 - 2|x|): ReActNet's and ReCU's, the derivative of a quadratic that approximates sign."""
    return (2 - 2 * x.abs()).clamp_min(0)


def centred(weight: Tensor) -> Tensor:
    """(O,I,KH,KW) less the mean of each filter."""
    return weight - weight.mean((1, 2, 3), keepdim=True)


def rectified_clamp(weight: Tensor, tau: Tensor) -> Tensor:
    """ReCU's v of the module's equations, in the shape of `weight` (O,I,KH,KW); tau in (0.5, 1) is a quantile."""
    axes = (1, 2, 3)
    spread = torch.sqrt(weight.var(axes, correction=0, keepdim=True) + _EPSILON)
    standard = centred(weight) * (2 * math.sqrt(2)) / spread
    limit = -standard.detach().abs().mean() * torch.log(2 - 2 * tau)
    return torch.clamp(standard, -limit, limit)


def recu_tau(progress: float) -> float:
    """ReCU's quantile at `progress` in 0..1 of training: A * e^progress + B, from 0.85 to 0.99."""
    low, high = _TAU_RANGE
    factor = (high - low) / (math.e - 1)
    return factor * math.exp(progress) + low - factor


def _standardize_samples(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.var((-3, -2, -1), correction=0, keepdim=True) + _EPSILON)


def _per_filter(weight: Tensor) -> Tensor:
    """(O,I,KH,KW) to the mean of each filter, (O,1,1)."""
    return weight.mean((1, 2, 3))[:, None, None]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.slope(x), None


class _Codes(torch.autograd.Function):
    """round(levels * clip(x, 0, 1)), halves to even, so that of one level 0.5 gives 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.levels = levels
        return (x.clamp(0, 1) * levels).round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.levels * ((x >= 0) & (x <= 1)), None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None


class _Nearest(torch.autograd.Function):
    """Undo what a fast convolution algorithm rounds in a sum that is an integer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]
