"""Tokens that a router chose: which they are, their rows, and what becomes of these put back among the others.

`places` int32 (N, K) lists tokens of each of N images, at most K of L, the surest first; where fewer were chosen, -1
fills the rest. No shape depends on what was chosen.

Source: MEMatte (AAAI 2025), section 3.3; the fixed shape is ours.
"""

import torch
from torch import Tensor

NONE = -1


@torch.library.custom_op(
    "matte::choose_tokens", mutates_args=(), schema="(Tensor margin, int limit) -> Tensor"
)
def choose_tokens(margin: Tensor, limit: int) -> Tensor:
    """The tokens of largest margin among those above 0; of equal ones, the first.

    Args:
        margin: (N, L).
        limit: K, at most L.

    Returns:
        int32 (N, K).
    """
    _check_limit(margin, limit)
    largest, places = margin.sort(dim=1, descending=True, stable=True)
    return torch.where(largest > 0, places, NONE)[:, :limit].int()


@torch.library.custom_op(
    "matte::gather_tokens", mutates_args=(), schema="(Tensor x, Tensor places) -> Tensor"
)
def gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x (N, L, C) at places (N, K), zeros where there is none: (N, K, C)."""
    index = places.clamp(min=0).long()[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, index) * (places >= 0)[..., None].to(x)


@torch.library.custom_op(
    "matte::scatter_tokens", mutates_args=(), schema="(Tensor rows, Tensor places, Tensor base) -> Tensor"
)
def scatter_tokens(rows: Tensor, places: Tensor, base: Tensor) -> Tensor:
    """base (N, L, C) with rows (N, K, C) at places (N, K); rows without a place are left out."""
    result = base.clone()
    for image, row, place in zip(result, rows, places, strict=True):
        image[place[place >= 0].long()] = row[place >= 0]
    return result


@choose_tokens.register_fake
def _(margin: Tensor, limit: int) -> Tensor:
    _check_limit(margin, limit)
    return margin.new_empty((margin.shape[0], limit), dtype=torch.int32)


@gather_tokens.register_fake
def _(x: Tensor, places: Tensor) -> Tensor:
    return x.new_empty((*places.shape, x.shape[2]))


@scatter_tokens.register_fake
def _(rows: Tensor, places: Tensor, base: Tensor) -> Tensor:
    return torch.empty_like(base)


def _check_limit(margin: Tensor, limit: int) -> None:
    if not 0 < limit <= margin.shape[1]:
        raise ValueError(f"limit is {limit}, of {margin.shape[1]} tokens")
