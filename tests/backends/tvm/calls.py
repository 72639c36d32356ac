"""Calls of the lowered operations with random data: an operation and its arguments."""

from typing import Any

import torch
from torch import Tensor

from mattecompress.ops import binary, integer
from tests.ops.cases import Convolution

matte = torch.ops.matte
Call = tuple[Any, tuple[Any, ...]]


def generator(case: Convolution, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(case.seed * 8 + salt)


def image(case: Convolution, channels: int) -> Tensor:
    """Quarters, so that zeros, halves and ties occur."""
    shape = (case.batch, channels, case.height, case.width)
    return torch.randint(-9, 10, shape, generator=generator(case)) / 4


def tail(case: Convolution) -> tuple[list[int], list[int], list[int]]:
    return list(case.stride), list(case.padding), list(case.dilation)


def pack_signs(case: Convolution, word: int, threshold: bool) -> Call:
    channels = case.groups * case.channels
    limit = torch.randint(-4, 5, (channels,), generator=generator(case, 1)) / 4 if threshold else None
    return matte.pack_signs.default, (image(case, channels), limit, case.groups, word)


def pack_units(case: Convolution, word: int) -> Call:
    return matte.pack_units.default, (image(case, case.groups * case.channels), case.groups, word)


def pack_plane(case: Convolution, word: int, plane: int) -> Call:
    """Sixths beside quarters: ties between codes lie at odd ones, and their product with 3 rounds."""
    quarters = image(case, case.groups * case.channels)
    x = torch.where(quarters.abs() > 1, quarters / 1.5, quarters)
    return matte.pack_plane.default, (x, plane, case.groups, word)


def binary_conv2d(case: Convolution, word: int, encoding: str, border: int) -> Call:
    op, arguments = pack_signs(case, word, threshold=False)
    shape = (case.groups * case.outputs, case.channels, *case.kernel)
    weight = binary.pack_weight_signs(torch.randn(shape, generator=generator(case, 2)), word)
    rest = (*tail(case), case.groups, encoding, border)
    return matte.binary_conv2d.default, (op(*arguments), weight, case.channels, *rest)


def binary_depthwise_conv2d(case: Convolution, word: int, encoding: str, border: int) -> Call:
    bits = matte.pack_signs(image(case, case.channels), None, 1, word)
    weight = torch.randn((case.channels, 1, *case.kernel), generator=generator(case, 2))
    packed = binary.pack_depthwise_signs(weight, word)
    return matte.binary_depthwise_conv2d.default, (bits, packed, case.channels, *tail(case), encoding, border)


def limits(case: Convolution, outputs: int) -> tuple[Tensor, Tensor]:
    """Bounds on sums near 0, of which half run around."""
    low, high = torch.randint(-9, 10, (2, outputs), generator=generator(case, 3), dtype=torch.int32)
    return low, high


def binary_conv2d_bits(case: Convolution, word: int, encoding: str, border: int) -> Call:
    _, (bits, weight, *rest) = binary_conv2d(case, word, encoding, border)
    return matte.binary_conv2d_bits.default, (bits, weight, *limits(case, weight.shape[0]), *rest)


def binary_depthwise_conv2d_bits(case: Convolution, word: int, encoding: str, border: int) -> Call:
    _, (bits, weight, *rest) = binary_depthwise_conv2d(case, word, encoding, border)
    return matte.binary_depthwise_conv2d_bits.default, (bits, weight, *limits(case, case.channels), *rest)


def quantized_conv2d(case: Convolution, weight_bits: int, zero_point: int, depthwise: bool = False) -> Call:
    groups, channels, outputs = case.groups, case.channels, case.outputs
    if depthwise:
        groups, channels, outputs = channels, 1, 1
    shape = (case.batch, groups * channels, case.height, case.width)
    codes = torch.randint(0, 256, shape, generator=generator(case)).to(torch.uint8)
    low = -(2 ** (weight_bits - 1))
    weight = torch.randint(
        low, -low, (groups * outputs, channels, *case.kernel), generator=generator(case, 2)
    )
    stored = integer.pack_int4(weight) if weight_bits <= 4 else weight.to(torch.int8)
    rest = (zero_point, weight_bits, list(case.kernel), *tail(case), groups)
    return matte.quantized_conv2d.default, (codes, stored, *rest)


def quantize(case: Convolution, scale: float, zero_point: int, bits: int) -> Call:
    return matte.quantize.default, (image(case, case.channels), scale, zero_point, bits)


def dequantize(case: Convolution, scale: float, zero_point: int) -> Call:
    codes = matte.quantize(image(case, case.channels), 0.1, 40, 8)
    return matte.dequantize.default, (codes, scale, zero_point)
