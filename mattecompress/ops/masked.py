"""Convolutions that are computed only where a mask asks for them.

A mask divides each row of an image into tiles of `width` neighbouring pixels; a tile is active when the mask is not 0
somewhere in it. With K tiles in all images together, numbered along rows, then from image to image:

    tiles int32 (1 + 2 K) = [count, places[K], slots[K]]
        places[i] = number of the i-th active tile, 0 for i >= count
        slots[t]  = i where places[i] = t, -1 where tile t is not active

One such list serves every operation of one size. What a masked operation yields is compact, (1, C, K, width): row i is
the i-th active tile, so that whatever follows elementwise is masked as well, until `scatter_tiles` adds it to an image,
or `spread_tiles` makes it one for a convolution whose own tiles these reach around.
Rows from `count` on only keep shapes static: here they are 0; a backend need not compute them and no one may use them.

Source: BiVM equation (17), y = M * C3(x) + C1(x), where outputs of C3 with M = 0 are not needed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = (4, 8)
"""Pixels of a tile: as many as the kernels' register tiles take, so that a narrow band wastes little."""


def choose_width(columns: int, enlarged: int = 1) -> int:
    """The width of tiles for rows of `columns` pixels.

    enlarged: by how much a smaller mask has been resized bilinearly: it is not 0 from halfway between two of its pixels
        to halfway between two others, so that wider tiles fit it too.
    """
    narrow, wide = WIDEST
    widest = min(max(narrow, enlarged // 2), wide)
    return max(width for width in range(1, widest + 1) if columns % width == 0)


def count_tiles(shape: Sequence[int], width: int) -> int:
    """K for images of logical `shape` (N, C, H, W).

    Raises:
        ValueError: a row does not divide into tiles of `width` pixels.
    """
    if width < 1 or shape[3] % width:
        raise ValueError(f"{shape[3]} columns do not divide into tiles of {width}")
    return shape[0] * shape[2] * (shape[3] // width)


@torch.library.custom_op("matte::mask_tiles", mutates_args=(), schema="(Tensor mask, int width) -> Tensor")
def mask_tiles(mask: Tensor, width: int) -> Tensor:
    """List the active tiles of a mask.

    Args:
        mask: bool or float32 (N, 1, H, W).
        width: pixels of a tile; divides W.

    Returns:
        int32 (1 + 2 K).
    """
    tiles = count_tiles(mask.shape, width)
    active = (mask != 0).reshape(tiles, width).any(1)
    places = active.nonzero().flatten()
    slots = torch.where(active, active.cumsum(0) - 1, -1)
    count = torch.tensor([len(places)])
    return torch.cat([count, F.pad(places, (0, tiles - len(places))), slots]).int()


@torch.library.custom_op(
    "matte::gather_tiles", mutates_args=(), schema="(Tensor x, Tensor tiles, int width) -> Tensor"
)
def gather_tiles(x: Tensor, tiles: Tensor, width: int) -> Tensor:
    """The active tiles of images (N, C, H, W) of any type: (1, C, K, width)."""
    return _gather(x, tiles, width)


def _gather(x: Tensor, tiles: Tensor, width: int) -> Tensor:
    count = count_tiles(x.shape, width)
    rows = x.permute(0, 2, 3, 1).reshape(count, width, x.shape[1])
    kept = torch.zeros_like(rows)
    active = int(tiles[0])
    kept[:active] = rows[tiles[1 : 1 + active].long()]
    return kept.permute(2, 0, 1).unsqueeze(0).contiguous()


@torch.library.custom_op(
    "matte::scatter_tiles", mutates_args=(), schema="(Tensor values, Tensor tiles, Tensor base) -> Tensor"
)
def scatter_tiles(values: Tensor, tiles: Tensor, base: Tensor) -> Tensor:
    """Add compact values to images where tiles are active.

    Args:
        values: (1, C, K, width) of the type of `base`.
        tiles: of `mask_tiles` for the same width.
        base: (N, C, H, W).

    Returns:
        (N, C, H, W).
    """
    _, channels, count, width = values.shape
    active = int(tiles[0])
    rows = base.permute(0, 2, 3, 1).reshape(count, width, channels).clone()
    rows[tiles[1 : 1 + active].long()] += values[0].permute(1, 2, 0)[:active]
    shape = (base.shape[0], base.shape[2], base.shape[3], channels)
    return rows.reshape(shape).permute(0, 3, 1, 2).contiguous()


@torch.library.custom_op(
    "matte::spread_tiles", mutates_args=(), schema="(Tensor values, Tensor tiles, int[] size) -> Tensor"
)
def spread_tiles(values: Tensor, tiles: Tensor, size: Sequence[int]) -> Tensor:
    """Images of compact values, 0 where tiles are not active.

    Args:
        values: (1, C, K, width).
        tiles: of `mask_tiles` for the same width.
        size: (H, W) of the images.

    Returns:
        (N, C, H, W).
    """
    return torch.ops.matte.scatter_tiles(values, tiles, _spread(values, size).zero_())  # type: ignore[no-any-return]


def _spread(values: Tensor, size: Sequence[int]) -> Tensor:
    """Images without content.

    Raises:
        ValueError: the tiles do not fill images of that size.
    """
    _, channels, count, width = values.shape
    if count * width % (size[0] * size[1]) or size[1] % width:
        raise ValueError(f"{count} tiles of {width} do not fill images of {size[0]}x{size[1]}")
    return values.new_empty((count * width // (size[0] * size[1]), channels, *size))


@torch.library.custom_op(
    "matte::masked_binary_conv2d",
    mutates_args=(),
    schema="(Tensor bits, Tensor weight, Tensor tiles, int width, int channels, int[] stride, int[] padding, "
    "int[] dilation, int groups, str encoding, int border) -> Tensor",
)
def masked_binary_conv2d(
    bits: Tensor,
    weight: Tensor,
    tiles: Tensor,
    width: int,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    encoding: str,
    border: int,
) -> Tensor:
    """`matte::binary_conv2d` at the active tiles of its outputs: int32 (1, O, K, width)."""
    dense = torch.ops.matte.binary_conv2d(
        bits, weight, channels, stride, padding, dilation, groups, encoding, border
    )
    return _gather(dense, tiles, width)


@torch.library.custom_op(
    "matte::masked_quantized_conv2d",
    mutates_args=(),
    schema="(Tensor q, Tensor weight, Tensor tiles, int width, int zero_point, int weight_bits, int[] kernel, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor",
)
def masked_quantized_conv2d(
    q: Tensor,
    weight: Tensor,
    tiles: Tensor,
    width: int,
    zero_point: int,
    weight_bits: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`matte::quantized_conv2d` at the active tiles of its outputs: int32 (1, O, K, width)."""
    dense = torch.ops.matte.quantized_conv2d(
        q, weight, zero_point, weight_bits, kernel, stride, padding, dilation, groups
    )
    return _gather(dense, tiles, width)


@torch.library.custom_op(
    "matte::masked_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor tiles, int width, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
)
def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tiles: Tensor,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`aten::conv2d` at the active tiles of its outputs: float32 (1, O, K, width)."""
    return _gather(F.conv2d(x, weight, bias, stride, padding, dilation, groups), tiles, width)


def _compact(dense: Tensor, width: int) -> Tensor:
    return dense.new_empty((1, dense.shape[1], count_tiles(dense.shape, width), width))


@mask_tiles.register_fake
def _(mask: Tensor, width: int) -> Tensor:
    return mask.new_empty((1 + 2 * count_tiles(mask.shape, width),), dtype=torch.int32)


@gather_tiles.register_fake
def _(x: Tensor, tiles: Tensor, width: int) -> Tensor:
    return _compact(x, width)


@scatter_tiles.register_fake
def _(values: Tensor, tiles: Tensor, base: Tensor) -> Tensor:
    _, channels, count, width = values.shape
    if channels != base.shape[1] or count != count_tiles(base.shape, width):
        raise ValueError(f"values {tuple(values.shape)} are no tiles of {tuple(base.shape)}")
    return torch.empty_like(base)


@spread_tiles.register_fake
def _(values: Tensor, tiles: Tensor, size: Sequence[int]) -> Tensor:
    return _spread(values, size)


@masked_binary_conv2d.register_fake
def _(bits: Tensor, weight: Tensor, tiles: Tensor, width: int, *arguments: object) -> Tensor:
    return _compact(torch.ops.matte.binary_conv2d(bits, weight, *arguments), width)


@masked_quantized_conv2d.register_fake
def _(q: Tensor, weight: Tensor, tiles: Tensor, width: int, *arguments: object) -> Tensor:
    return _compact(torch.ops.matte.quantized_conv2d(q, weight, *arguments), width)


@masked_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tensor, width: int, *arguments: object
) -> Tensor:
    return _compact(torch.ops.aten.conv2d.default(x, weight, bias, *arguments), width)
