"""Factors k for the channels that a convolution reads, y = conv(k x, W / k), and the noise that rounding leaves in y.

    k_c = w_c^(1-a) / x_c^a,  x_c and w_c the greatest |x| and |W| of channel c,  a = 0.25, 0.5, 0.75, 1
    noise = sum over o, c of (W_oc / k_c)^2 E[e_c^2] + d_oc^2 E[(k_c x_c)^2]

e and d are what quantizers with ranges of least error make wrong in k x, which shares one range, and in W / k, which has
one for each output. Values of different channels, and neighbouring pixels, are taken to be unrelated.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, has a = 1/2;
Xiao et al., "SmoothQuant", ICML 2023, has the exponent, for one value in all layers. That noise decides is ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mattecompress.facts import Precision
from mattecompress.interface import Clip
from mattecompress.modules.quantizer import QuantizerConfig
from mattecompress.program import Program
from mattecompress.quantization.calibration import collect, fitted
from mattecompress.running.watching import Progress

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
SMALLEST_SHARE = 1e-3
SAMPLES = 1 << 13


@dataclass
class Channels:
    """What was seen of the channels of one tensor (N,C,H,W): extremes (C,), and values at some places (n,C)."""

    extremes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pieces: list[Tensor] = field(default_factory=list)

    @property
    def samples(self) -> Tensor:
        """(n,C), evenly from all frames."""
        return torch.cat(self.pieces)

    @property
    def low(self) -> Tensor:
        """(C,)."""
        return torch.stack([low for low, _ in self.extremes]).amin(0)

    @property
    def high(self) -> Tensor:
        """(C,)."""
        return torch.stack([high for _, high in self.extremes]).amax(0)

    def add(self, value: Tensor, count: int, generator: torch.Generator) -> None:
        """Take in the tensor of one frame, `count` values of it at random places.

        Raises:
            FloatingPointError: a value is not finite.
        """
        if not value.isfinite().all():
            raise FloatingPointError("values that are not finite")
        rows = value.transpose(0, 1).flatten(1)
        places = torch.randint(rows.shape[1], (-(-count // len(rows)),), generator=generator)
        self.extremes.append((rows.amin(1), rows.amax(1)))
        self.pieces.append(rows[:, places].T.clone())


def sample_channels(
    program: Program, names: Iterable[str], clips: Sequence[Clip], seed: int, progress: Progress
) -> dict[str, Channels]:
    """The channels of the nodes called `names` on clips, as of `collect`."""
    return collect(Channels, SAMPLES, program, names, clips, seed, progress)


def grouped(weight: Tensor, groups: int) -> Tensor:
    """(O, C/groups, h, w) as (groups, O/groups, C/groups, h w)."""
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


@torch.no_grad()
def best_factors(channels: Channels, weight: Tensor, precision: Precision, gain: float) -> Tensor | None:
    """k (C,) of least noise; None where the noise with 1 in place of k is not `gain` times that.

    weight: from `grouped`.
    """
    x, w = torch.maximum(-channels.low, channels.high), weight.abs().amax((1, 3)).flatten()
    x, w = (part.clamp_min(SMALLEST_SHARE * part.max()).clamp_min(1e-30) for part in (x, w))
    candidates = [w ** (1 - a) / x**a for a in EXPONENTS]
    noises = [_noise(channels, weight, factors / factors.mean(), precision) for factors in candidates]
    least = min(noises)
    if _noise(channels, weight, torch.ones_like(x), precision) < gain * least or least == 0:
        return None
    best = candidates[noises.index(least)]
    return best * (x.max() / (x * best).max())


def _noise(channels: Channels, weight: Tensor, factors: Tensor, precision: Precision) -> float:
    k = factors.reshape(len(weight), 1, -1, 1)
    values, held = channels.samples * factors, weight / k
    ends = (channels.low * factors).amin().reshape(1), (channels.high * factors).amax().reshape(1)
    flat, rows = values.reshape(1, -1), held.flatten(0, 1).flatten(1)
    wrong = fitted(flat, *ends, QuantizerConfig(precision.activation_bits)) - flat
    config = QuantizerConfig(precision.weight_bits, symmetric=True, channels=len(rows))
    wrong_weights = (fitted(rows, *rows.aminmax(dim=1), config) - rows).reshape(held.shape)
    of_values = wrong.reshape(values.shape).square().mean(0).reshape(k.shape) * held.square()
    of_weights = wrong_weights.square() * values.square().mean(0).reshape(k.shape)
    return float(of_values.sum() + of_weights.sum())
