"""One-bit operations: how bits are packed, and convolutions of packed signs or units with packed sign weights.

Bits are packed along channels, least significant bit first: channel `c` of a group is bit `c % 8` of byte
`c // 8`. A group fills a whole number of words (8 to 128 bits); the bits that pad it are 0. A set bit means +1;
a clear bit means -1 in a tensor of signs and 0 in a tensor of units, and sign(0) = +1.

With `w` in {-1, +1} and the taps that lie inside the image:

    signs, x in {-1, +1}:  sum(x * w) = taps * channels - 2 * popcount(x ^ w)
    units, x in {0, 1}:    sum(x * w) = 2 * popcount(x & w) - popcount(x)

Two-bit activations, codes q = b0 + 2 b1 in 0..3, are two planes of units: sum(q * w) = sum(b0 * w) + 2 * sum(b1 * w).

The references below unpack and convolve exactly instead, so that they share nothing with the kernels they judge.
Source: BiVM equations (1), (3), (4); DoReFa's one-bit and two-bit activations for units.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.ops.exact import exact_conv2d, output_size

WORDS = (8, 16, 32, 64, 128)
ENCODINGS = ("signs", "units")


def choose_word(channels: int) -> int:
    """The word, in bits, that wastes the fewest padding bits on `channels` channels; of equals, the widest."""
    return min(WORDS, key=lambda word: (-channels % word, -word))


def bytes_per_group(channels: int, word: int) -> int:
    """Bytes that `channels` channels fill when packed into whole words of `word` bits.

    Raises:
        ValueError: `word` is not 8, 16, 32, 64 or 128.
    """
    if word not in WORDS:
        raise ValueError(f"word is {word}: expected one of {', '.join(map(str, WORDS))}")
    return -(-channels // word) * word // 8


def pack_bits(bits: Tensor, word: int) -> Tensor:
    """Pack the last axis of a bool tensor (..., C) into uint8 (..., B), padded with 0 to whole words."""
    channels = bits.shape[-1]
    size = bytes_per_group(channels, word)
    octets = F.pad(bits.to(torch.uint8), (0, size * 8 - channels)).reshape(*bits.shape[:-1], size, 8)
    placed = octets << torch.arange(8, dtype=torch.uint8, device=bits.device)
    return placed.sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, channels: int) -> Tensor:
    """Undo `pack_bits`: uint8 (..., B) to bool (..., channels)."""
    octets = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (octets & 1).flatten(-2)[..., :channels].bool()


def pack_weight_signs(weight: Tensor, word: int) -> Tensor:
    """Pack the signs of a float weight (O, I, KH, KW) into uint8 (O, KH, KW, B), a set bit for +1."""
    return pack_bits(weight.permute(0, 2, 3, 1) >= 0, word)


def unpack_weight_signs(packed: Tensor, channels: int) -> Tensor:
    """Undo `pack_weight_signs`: uint8 (O, KH, KW, B) to float32 -1 and +1 (O, channels, KH, KW)."""
    return _signs(unpack_bits(packed, channels)).permute(0, 3, 1, 2)


def pack_depthwise_signs(weight: Tensor, word: int) -> Tensor:
    """Pack the signs of a depthwise weight (C, 1, KH, KW) across channels into uint8 (KH, KW, B)."""
    return pack_bits(weight[:, 0].permute(1, 2, 0) >= 0, word)


def unpack_depthwise_signs(packed: Tensor, channels: int) -> Tensor:
    """Undo `pack_depthwise_signs`: uint8 (KH, KW, B) to float32 -1 and +1 (channels, 1, KH, KW)."""
    return _signs(unpack_bits(packed, channels)).permute(2, 0, 1).unsqueeze(1)


def unpack_image(bits: Tensor, channels: int, groups: int, encoding: str) -> Tensor:
    """Float32 values (N, groups * channels, H, W) of packed uint8 bits (N, H, W, groups * B).

    Raises:
        ValueError: `encoding` is neither "signs" nor "units".
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding is '{encoding}': expected signs or units")
    grouped = bits.reshape(*bits.shape[:3], groups, -1)
    unpacked = unpack_bits(grouped, channels).flatten(-2).permute(0, 3, 1, 2)
    return _signs(unpacked) if encoding == "signs" else unpacked.float()


def pack_image(bits: Tensor, groups: int, word: int) -> Tensor:
    """Pack a bool image (N, C, H, W) into uint8 (N, H, W, groups * B), each group by itself."""
    n, channels, h, w = bits.shape
    return pack_bits(bits.permute(0, 2, 3, 1).reshape(n, h, w, groups, channels // groups), word).flatten(-2)


@torch.library.custom_op(
    "matte::binary_conv2d",
    mutates_args=(),
    schema="(Tensor bits, Tensor weight, int channels, int[] stride, int[] padding, int[] dilation, int groups, "
    "str encoding, int border) -> Tensor",
)
def binary_conv2d(
    bits: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    encoding: str,
    border: int,
) -> Tensor:
    """Convolve packed signs or units with packed signs, exactly.

    Args:
        bits: uint8 (N, H, W, groups * B).
        weight: uint8 (O, KH, KW, B), packed with the same word.
        channels: input channels per group, without padding bits.
        stride, padding, dilation: (vertical, horizontal), in pixels.
        groups: number of groups.
        encoding: what `bits` holds, "signs" or "units".
        border: 0, taps outside the image count 0; 1, they act as +1.

    Returns:
        int32 (N, O, OH, OW).
    """
    image = unpack_image(bits, channels, groups, encoding)
    signs = unpack_weight_signs(weight, channels)
    return _binary_convolution(image, signs, stride, padding, dilation, groups, border)


@torch.library.custom_op(
    "matte::binary_depthwise_conv2d",
    mutates_args=(),
    schema="(Tensor bits, Tensor weight, int channels, int[] stride, int[] padding, int[] dilation, str encoding, "
    "int border) -> Tensor",
)
def binary_depthwise_conv2d(
    bits: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    encoding: str,
    border: int,
) -> Tensor:
    """Convolve every channel with its own packed filter, exactly.

    Args:
        bits: uint8 (N, H, W, B), all channels packed as one group.
        weight: uint8 (KH, KW, B), packed across channels.
        channels: channels without padding bits.
        stride, padding, dilation, encoding, border: as for `binary_conv2d`.

    Returns:
        int32 (N, channels, OH, OW).
    """
    image = unpack_image(bits, channels, 1, encoding)
    signs = unpack_depthwise_signs(weight, channels)
    return _binary_convolution(image, signs, stride, padding, dilation, channels, border)


@torch.library.custom_op(
    "matte::binary_conv2d_bits",
    mutates_args=(),
    schema="(Tensor bits, Tensor weight, Tensor low, Tensor high, int channels, int[] stride, int[] padding, "
    "int[] dilation, int groups, str encoding, int border) -> Tensor",
)
def binary_conv2d_bits(
    bits: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    encoding: str,
    border: int,
) -> Tensor:
    """The sums of `binary_conv2d`, compared at once with integers and packed for the next layer.

    Args:
        bits, weight, channels, stride, padding, dilation, groups, encoding, border: as for `binary_conv2d`.
        low, high: int32 (O,); a group has a multiple of 8 outputs. A bit is set where low <= sum <= high, or, where
            low > high, where sum >= low or sum <= high.

    Returns:
        uint8 (N, OH, OW, O / 8).
    """
    sums = binary_conv2d(bits, weight, channels, stride, padding, dilation, groups, encoding, border)
    return pack_image(_within(sums, low, high), 1, 8)


@torch.library.custom_op(
    "matte::binary_depthwise_conv2d_bits",
    mutates_args=(),
    schema="(Tensor bits, Tensor weight, Tensor low, Tensor high, int channels, int[] stride, int[] padding, "
    "int[] dilation, str encoding, int border) -> Tensor",
)
def binary_depthwise_conv2d_bits(
    bits: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    encoding: str,
    border: int,
) -> Tensor:
    """The sums of `binary_depthwise_conv2d`, compared at once with integers and packed for the next layer.

    Args:
        bits, weight, channels, stride, padding, dilation, encoding, border: as for `binary_depthwise_conv2d`.
        low, high: as for `binary_conv2d_bits`, of `channels`.

    Returns:
        uint8 (N, OH, OW, channels / 8).
    """
    sums = binary_depthwise_conv2d(bits, weight, channels, stride, padding, dilation, encoding, border)
    return pack_image(_within(sums, low, high), 1, 8)


def _within(sums: Tensor, low: Tensor, high: Tensor) -> Tensor:
    first, last = low[:, None, None], high[:, None, None]
    above, below = sums >= first, sums <= last
    return torch.where(first <= last, above & below, above | below)


def _signs(bits: Tensor) -> Tensor:
    return bits.float() * 2 - 1


def _binary_convolution(
    image: Tensor,
    signs: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    border: int,
) -> Tensor:
    if border not in (0, 1):
        raise ValueError(f"border is {border}: expected 0 or 1")
    vertical, horizontal = padding
    padded = F.pad(image, (horizontal, horizontal, vertical, vertical), value=float(border))
    return exact_conv2d(padded, signs, stride, (0, 0), dilation, groups, peak=1)


@binary_conv2d.register_fake
def _(
    bits: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    encoding: str,
    border: int,
) -> Tensor:
    outputs, *kernel, size = weight.shape
    if bits.shape[3] != groups * size or outputs % groups:
        raise ValueError(
            f"bits {tuple(bits.shape)} do not fit weight {tuple(weight.shape)} in {groups} groups"
        )
    rows, columns = output_size(bits.shape[1:3], kernel, stride, padding, dilation)
    return bits.new_empty((bits.shape[0], outputs, rows, columns), dtype=torch.int32)


@binary_depthwise_conv2d.register_fake
def _(
    bits: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    encoding: str,
    border: int,
) -> Tensor:
    *kernel, size = weight.shape
    if bits.shape[3] != size:
        raise ValueError(f"bits {tuple(bits.shape)} do not fit depthwise weight {tuple(weight.shape)}")
    rows, columns = output_size(bits.shape[1:3], kernel, stride, padding, dilation)
    return bits.new_empty((bits.shape[0], channels, rows, columns), dtype=torch.int32)


@binary_conv2d_bits.register_fake
def _(
    bits: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    encoding: str,
    border: int,
) -> Tensor:
    outputs, *kernel, _ = weight.shape
    size = output_size(bits.shape[1:3], kernel, stride, padding, dilation)
    return _bits_shape(bits, outputs, groups, size)


@binary_depthwise_conv2d_bits.register_fake
def _(
    bits: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    encoding: str,
    border: int,
) -> Tensor:
    size = output_size(bits.shape[1:3], weight.shape[:2], stride, padding, dilation)
    return _bits_shape(bits, channels, 1, size)


def _bits_shape(bits: Tensor, outputs: int, groups: int, size: Sequence[int]) -> Tensor:
    if outputs % (8 * groups):
        raise ValueError(f"{outputs} channels in {groups} groups fill no whole number of bytes")
    return bits.new_empty((bits.shape[0], *size, outputs // 8), dtype=torch.uint8)
