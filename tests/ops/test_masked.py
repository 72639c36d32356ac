"""Masked operations against what their docstrings say, pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.ops import binary, masked
from tests.ops.cases import draw_mask

matte = torch.ops.matte
shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None)
@given(shapes, st.floats(0, 1), st.integers(0, 99))
def test_list(shape: tuple[int, ...], density: float, seed: int) -> None:
    batch, height, across, width = shape
    mask = draw_mask((batch, 1, height, across * width), density, seed)
    count, *rest = matte.mask_tiles(mask, width).tolist()
    tiles = batch * height * across
    places, slots = rest[:tiles], rest[tiles:]
    assert len(slots) == tiles
    active = [
        tile
        for tile in range(tiles)
        if mask[
            tile // across // height,
            0,
            tile // across % height,
            tile % across * width : (tile % across + 1) * width,
        ].any()
    ]
    assert places == active + [0] * (tiles - count)
    assert [slots[tile] for tile in active] == list(range(count))
    assert sum(slot == -1 for slot in slots) == tiles - count
    assert matte.mask_tiles(mask != 0, width).tolist() == [count, *rest]


def test_rows_divide_into_tiles() -> None:
    assert [masked.choose_width(columns) for columns in (64, 30, 34, 7, 5)] == [4, 3, 2, 1, 1]
    with pytest.raises(ValueError, match="6 columns do not divide into tiles of 4"):
        matte.mask_tiles(torch.zeros(1, 1, 2, 6), 4)
    tiles = matte.mask_tiles(torch.zeros(1, 1, 2, 6), 3)
    with pytest.raises(ValueError, match="4 tiles of 3 do not fill images of 5x6"):
        matte.spread_tiles(torch.zeros(1, 1, 4, 3), tiles, [5, 6])


@settings(deadline=None)
@given(shapes, st.floats(0, 1), st.integers(0, 99))
def test_scatter_undoes_gather(shape: tuple[int, ...], density: float, seed: int) -> None:
    batch, height, across, width = shape
    mask = draw_mask((batch, 1, height, across * width), density, seed)
    tiles = matte.mask_tiles(mask, width)
    x = torch.randn(batch, 3, height, across * width, generator=torch.Generator().manual_seed(seed))
    compact = matte.gather_tiles(x, tiles, width)
    assert compact.shape == (1, 3, batch * height * across, width)
    assert not compact[:, :, int(tiles[0]) :].any()
    spread = F.max_pool2d((mask != 0).float(), (1, width)).repeat_interleave(width, 3)
    alone = matte.spread_tiles(compact, tiles, [height, across * width])
    assert torch.equal(alone, torch.where(spread > 0, x, 0.0))
    back = matte.scatter_tiles(compact, tiles, torch.ones_like(x))
    assert torch.equal(back, 1 + x * spread)


def both(mask: Tensor, width: int, dense: Tensor, compact: Tensor) -> None:
    """A masked convolution is the dense one at active tiles."""
    tiles = matte.mask_tiles(mask, width)
    assert torch.equal(compact, matte.gather_tiles(dense, tiles, width))
    assert compact.dtype is dense.dtype


def test_convolutions_are_the_dense_ones() -> None:
    mask, width = draw_mask((1, 1, 5, 8), 0.3, 3), 4
    tiles = matte.mask_tiles(mask, width)
    x = torch.randn(1, 20, 5, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(6, 20, 3, 3, generator=torch.Generator().manual_seed(1))
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    bias = torch.arange(6.0)
    both(
        mask,
        width,
        F.conv2d(x, weight, bias, 1, 1),
        matte.masked_conv2d(x, weight, bias, tiles, width, *geometry),
    )
    bits, signs = matte.pack_signs(x, None, 1, 32), binary.pack_weight_signs(weight, 32)
    rest = (20, *geometry, "signs", 0)
    both(
        mask,
        width,
        matte.binary_conv2d(bits, signs, *rest),
        matte.masked_binary_conv2d(bits, signs, tiles, width, *rest),
    )
    codes, whole = matte.quantize(x, 0.02, 100, 8), (weight * 20).to(torch.int8)
    numbers = (100, 8, [3, 3], *geometry)
    both(
        mask,
        width,
        matte.quantized_conv2d(codes, whole, *numbers),
        matte.masked_quantized_conv2d(codes, whole, tiles, width, *numbers),
    )
