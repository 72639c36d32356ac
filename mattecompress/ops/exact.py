"""Integer convolution by floating point that cannot round: the arithmetic below every reference here."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT32_EXACT = 1 << 22
"""Sums below this stay exact in float32 with two bits to spare, which the final rounding uses up."""


def exact_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    peak: int,
) -> Tensor:
    """Convolve integers held in floats; no sum is rounded.

    Args:
        x: integers in any float type (N, C, H, W), none above `peak` in magnitude.
        weight: integers in any float type (O, C / groups, KH, KW).
        stride, padding, dilation: (vertical, horizontal); padding counts 0.
        groups: number of groups.
        peak: bound on the magnitude of `x`.

    Returns:
        int32 (N, O, OH, OW).
    """
    largest = peak * int(weight.abs().flatten(1).sum(1).max())
    dtype = torch.float32 if largest < FLOAT32_EXACT else torch.float64
    total = F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, dilation, groups)
    return total.round().to(torch.int32).contiguous()


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Rows and columns that a convolution gives for an input of `size` rows and columns."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
