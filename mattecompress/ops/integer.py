"""Integer operations: affine quantization and convolutions of unsigned codes with signed 4- or 8-bit weights.

    quantize:    q = clamp(round(x / scale) + zero_point, 0, 2**bits - 1), halves to even
    dequantize:  x = (q - zero_point) * scale
    convolve:    sum over taps inside the image of (q - zero_point) * w, in int32

Source: the uniform affine quantizer that BRECQ, QDrop and PTQ4VM share, zero point outside the rounding.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.ops.exact import exact_conv2d, output_size


def pack_int4(codes: Tensor) -> Tensor:
    """Pack int8 codes in [-8, 7], (O, ...), into uint8 (O, ceil(n / 2)), row-major, low nibble first.

    An odd row ends in a zero nibble.
    """
    rows = codes.flatten(1)
    nibbles = F.pad(rows, (0, rows.shape[1] % 2)).to(torch.uint8) & 15
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def unpack_int4(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_int4`: uint8 (O, ceil(n / 2)) to int8 codes of `shape` (O, ...)."""
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, : math.prod(shape[1:])]
    return ((nibbles.to(torch.int8) ^ 8) - 8).reshape(tuple(shape))


def unpack_weight(weight: Tensor, inputs: int, weight_bits: int, kernel: Sequence[int]) -> Tensor:
    """Int8 weight (O, inputs, KH, KW) of `matte::quantized_conv2d`, whether it is stored in 4 or 8 bits."""
    if weight_bits > 4:
        return weight
    return unpack_int4(weight, (weight.shape[0], inputs, *kernel))


@torch.library.custom_op(
    "matte::quantize", mutates_args=(), schema="(Tensor x, float scale, int zero_point, int bits) -> Tensor"
)
def quantize(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """Quantize float32 `x` of any shape to uint8 codes in [0, 2**bits - 1], halves to even.

    The division is a float32 division, not a multiplication by the reciprocal: they round differently.
    """
    step = torch.tensor(scale, dtype=torch.float32, device=x.device)
    return ((x / step).round() + zero_point).clamp(0, 2**bits - 1).to(torch.uint8)


@torch.library.custom_op(
    "matte::dequantize", mutates_args=(), schema="(Tensor q, float scale, int zero_point) -> Tensor"
)
def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """Float32 values of uint8 codes `q`."""
    step = torch.tensor(scale, dtype=torch.float32, device=q.device)
    return (q.to(torch.float32) - zero_point) * step


@torch.library.custom_op(
    "matte::quantized_conv2d",
    mutates_args=(),
    schema="(Tensor q, Tensor weight, int zero_point, int weight_bits, int[] kernel, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
)
def quantized_conv2d(
    q: Tensor,
    weight: Tensor,
    zero_point: int,
    weight_bits: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve unsigned codes with signed weights, exactly; padding contributes 0.

    Args:
        q: uint8 (N, C, H, W).
        weight: int8 (O, C / groups, KH, KW) when `weight_bits` is above 4; else uint8 of `pack_int4`.
        zero_point: the code of 0 in `q`.
        weight_bits: bits per weight, 2 to 8.
        kernel, stride, padding, dilation: (vertical, horizontal), in pixels.
        groups: number of groups.

    Returns:
        int32 (N, O, OH, OW).
    """
    codes = unpack_weight(weight, q.shape[1] // groups, weight_bits, kernel)
    centred = q.to(torch.float64) - zero_point
    peak = max(abs(zero_point), abs(255 - zero_point))
    return exact_conv2d(centred, codes.to(torch.float64), stride, padding, dilation, groups, peak)


@quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@dequantize.register_fake
def _(q: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@quantized_conv2d.register_fake
def _(
    q: Tensor,
    weight: Tensor,
    zero_point: int,
    weight_bits: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    if weight.shape[0] % groups:
        raise ValueError(f"{weight.shape[0]} output channels do not divide into {groups} groups")
    rows, columns = output_size(q.shape[2:], kernel, stride, padding, dilation)
    return q.new_empty((q.shape[0], weight.shape[0], rows, columns), dtype=torch.int32)
