"""Packing activations: signs, units, and the planes of two-bit codes; `mattecompress.ops.binary` says how bits lie.

Source: BiVM equation (3); DoReFa's one-bit and two-bit activations.
"""

import torch
from torch import Tensor

from mattecompress.ops.binary import bytes_per_group, pack_image


@torch.library.custom_op(
    "matte::pack_signs",
    mutates_args=(),
    schema="(Tensor x, Tensor? threshold, int groups, int word) -> Tensor",
)
def pack_signs(x: Tensor, threshold: Tensor | None, groups: int, word: int) -> Tensor:
    """Pack `x >= threshold` (0 when None), so that sign(0) = +1.

    Args:
        x: float32 (N, C, H, W).
        threshold: float32 (C,), one per channel, or None.
        groups: number of groups, each packed by itself.
        word: 8, 16, 32, 64 or 128 bits.

    Returns:
        uint8 (N, H, W, groups * B), B bytes per group. Source: BiVM equation (3).
    """
    limit = 0.0 if threshold is None else threshold[:, None, None]
    return pack_image(x >= limit, groups, word)


@torch.library.custom_op(
    "matte::pack_units", mutates_args=(), schema="(Tensor x, int groups, int word) -> Tensor"
)
def pack_units(x: Tensor, groups: int, word: int) -> Tensor:
    """Pack `x > 0.5`, which is round(clip(x, 0, 1)) with halves to even: DoReFa's one-bit activation.

    Args and result as for `pack_signs`.
    """
    return pack_image(x > 0.5, groups, word)


@torch.library.custom_op(
    "matte::pack_plane", mutates_args=(), schema="(Tensor x, int plane, int groups, int word) -> Tensor"
)
def pack_plane(x: Tensor, plane: int, groups: int, word: int) -> Tensor:
    """Pack bit `plane` of round(3 * clip(x, 0, 1)), halves to even: DoReFa's two-bit activation.

    Args:
        x: float32 (N, C, H, W); the product with 3 is rounded to float32.
        plane: 0 or 1.
        groups, word: as for `pack_signs`.

    Returns:
        As `pack_signs`.
    """
    codes = (x.clamp(0, 1) * 3).round().to(torch.uint8)
    return pack_image((codes >> plane & 1).bool(), groups, word)


def _pack_shape(x: Tensor, groups: int, word: int) -> Tensor:
    n, c, h, w = x.shape
    if c % groups:
        raise ValueError(f"{c} channels do not divide into {groups} groups")
    return x.new_empty((n, h, w, groups * bytes_per_group(c // groups, word)), dtype=torch.uint8)


@pack_signs.register_fake
def _(x: Tensor, threshold: Tensor | None, groups: int, word: int) -> Tensor:
    return _pack_shape(x, groups, word)


@pack_units.register_fake
def _(x: Tensor, groups: int, word: int) -> Tensor:
    return _pack_shape(x, groups, word)


@pack_plane.register_fake
def _(x: Tensor, plane: int, groups: int, word: int) -> Tensor:
    if plane not in (0, 1):
        raise ValueError(f"plane is {plane}: expected 0 or 1")
    return _pack_shape(x, groups, word)
