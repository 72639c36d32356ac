"""Attention over a grid with decomposed relative positions, whose map of all pairs is never in memory:

    y[h, w] = sum over kh, kw of softmax(scale q[h, w] . k[kh, kw] + V[h, w, kh] + U[h, w, kw]) v[kh, kw]

is computed for one tile of queries of one head after the other by PyTorch's exact fused attention; what V and U add to
a tile's logits is written into the same memory each time.

Sources: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, for the positions; Dao et
al., "FlashAttention", 2022, for fused attention; the tiles are ours.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor vertical, Tensor horizontal, float scale, int queries) -> Tensor"


@torch.library.custom_op("matte::attend_on_grid", mutates_args=(), schema=SCHEMA)
def attend_on_grid(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    scale: float,
    queries: int,
) -> Tensor:
    """Attention of each of B images and heads.

    Args:
        query, key, value: (B, H*W, C), float.
        vertical: V, (B, H, W, H). horizontal: U, (B, H, W, W).
        scale: of the products, not of V and U.
        queries: of a tile, at most, but at least a row.

    Returns:
        (B, H*W, C).
    """
    result = torch.empty_like(value, memory_format=torch.contiguous_format)
    _, height, width, _ = vertical.shape
    memory = vertical.new_empty(next(row_tiles(height, width, queries)).stop, width, height, width)
    for image, rows, places in _tiles(vertical, queries):
        terms = (vertical[image, rows, :, :, None], horizontal[image, rows, :, None, :])
        bias = torch.add(*terms, out=memory[: rows.stop - rows.start])
        result[image, places] = _attend(query[image, places], key[image], value[image], bias, scale)
    return result


@attend_on_grid.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    scale: float,
    queries: int,
) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Of one tile: query (Q, C), key and value (H*W, C), bias (Q/W, W, H, W)."""
    flat = bias.reshape(len(query), len(key))
    q, k, v, mask = (tensor[None, None] for tensor in (query, key, value, flat))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)[0, 0]


def _tiles(vertical: Tensor, queries: int) -> Iterator[tuple[int, slice, slice]]:
    """Image and head, rows, and places of the queries of these rows."""
    images, height, width, _ = vertical.shape
    for image in range(images):
        for rows in row_tiles(height, width, queries):
            yield image, rows, slice(rows.start * width, rows.stop * width)


def row_tiles(height: int, width: int, queries: int) -> Iterator[slice]:
    """The rows of each tile of a grid: as many as have so many queries at most, but at least one."""
    rows = max(1, queries // width)
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.queries = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Each tile is computed again, so that here no map of all pairs is in memory either."""
    tensors = [tensor.detach() for tensor in ctx.saved_tensors]
    sums = [torch.zeros_like(tensor) for tensor in tensors]
    for image, rows, places in _tiles(tensors[3], ctx.queries):
        everywhere = slice(None)
        spans = (places, everywhere, everywhere, rows, rows)
        parts = [tensor[image, span].requires_grad_() for tensor, span in zip(tensors, spans, strict=True)]
        with torch.enable_grad():
            query, key, value, vertical, horizontal = parts
            bias = vertical[..., None] + horizontal[..., None, :]
            result = _attend(query, key, value, bias, ctx.scale)
        found = torch.autograd.grad(result, parts, gradient[image, places])
        for total, span, part in zip(sums, spans, found, strict=True):
            total[image, span] += part
    return *sums, None, None


attend_on_grid.register_autograd(_backward, setup_context=_keep)
