"""Attention among the tokens that a router chose; the others keep what the lightweight branch gave them.

    chosen  S = { i : p_i[0] > p_i[1] },  at most `limit`, those of the largest p_i[0] - p_i[1]
    y_i = (softmax(q_i K_S^T / sqrt(d)) V_S) W   for i in S,   else refined_i

In training every token goes both ways, d_i = 1 or 0 is drawn by Gumbel-softmax with straight-through gradient, and

    a_ij = (e_ij m_ij + eps / L) / (sum_j e_ij m_ij + eps),  m_ij = d_j, 1 where i = j,  eps = 1e-6
    y_i  = d_i (a_i V) W + (1 - d_i) refined_i

Each image has its own S: unlike the published program, which joins the tokens of a batch, images of a batch do not see
each other.

Source: MEMatte (AAAI 2025), section 3.3 and its program; the masked softmax is DynamicViT's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
Form = Literal["dynamic", "static"]


@dataclass(frozen=True)
class RoutedAttentionConfig:
    """Channels and heads; how many tokens of an image attend at most; and where room for them comes from.

    form: dynamic, room for as many tokens as were chosen; static, always for `limit` of them, invalid ones masked, so
        that no shape depends on data.
    """

    channels: int
    heads: int
    limit: int = 18500
    form: Form = "dynamic"


class TokenChoice(nn.Module):
    """Which tokens attend, drawn by Gumbel-softmax in training: what those see who hook this module.

    noise: factor, above 0, of what Gumbel-softmax adds to the scores; MEMatte has 1, and close to 0 training chooses as
        inference does.
    """

    noise: float = 1.0

    def forward(self, scores: Tensor) -> Tensor:
        """(N,H,W,2) to (N,H,W,1) of ones and zeros, with a gradient as if they were softmax(scores + noise * g)."""
        return F.gumbel_softmax(scores / self.noise, tau=1 / self.noise, hard=True)[..., :1]


class RoutedAttention(nn.Module):
    """Multi-head self-attention without positions, for chosen tokens."""

    def __init__(self, config: RoutedAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.proj = nn.Linear(config.channels, config.channels)
        self.choice = TokenChoice()

    def forward(self, x: Tensor, refined: Tensor, scores: Tensor) -> Tensor:
        """x and refined (N,H,W,C), scores (N,H,W,2) as of `TokenRouter`, to (N,H,W,C)."""
        if self.training:
            return self._both_ways(x, refined, scores)
        margin = (scores[..., 0] - scores[..., 1]).flatten(1)
        room = min(self.config.limit, margin.shape[1])
        if self.config.form == "dynamic":
            room = min(room, int((margin > 0).sum(1).amax()))
            if room == 0:
                return refined
        largest, places = margin.topk(room, dim=1)
        valid, index = largest > 0, places[..., None].expand(-1, -1, x.shape[-1])
        attended = self._attend(x.flatten(1, 2).gather(1, index), valid)
        kept = refined.flatten(1, 2)
        written = torch.where(valid[..., None], attended, kept.gather(1, index))
        return kept.scatter(1, index, written).view_as(refined)

    def chosen(self, scores: Tensor) -> Tensor:
        """Which tokens attend, (N,H,W) bool, by scores (N,H,W,2) as of `TokenRouter`."""
        margin = (scores[..., 0] - scores[..., 1]).flatten(1)
        largest, places = margin.topk(min(self.config.limit, margin.shape[1]), dim=1)
        return (
            torch.zeros_like(margin, dtype=torch.bool).scatter(1, places, largest > 0).view(scores.shape[:3])
        )

    def shaped(self, x: Tensor, refined: Tensor, scores: Tensor) -> Tensor:
        """An empty result: how many tokens are chosen does not matter to its shape."""
        return torch.empty_like(refined)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens of one image, of which as many attend as may."""
        room = min(self.config.limit, tokens)
        return room * (self.qkv.weight.numel() + self.proj.weight.numel() + 2 * room * self.config.channels)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (N,heads,L,C/heads)."""
        batch, length, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(batch, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _attend(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Attention among the valid of (N,K,C); where none is valid, among all, and nobody reads it."""
        seen = valid | ~valid.any(1, keepdim=True)
        mixed = F.scaled_dot_product_attention(*self._heads(tokens), seen[:, None, None])
        result: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return result

    def _both_ways(self, x: Tensor, refined: Tensor, scores: Tensor) -> Tensor:
        chosen = self.choice(scores)
        q, k, v = self._heads(x.flatten(1, 2))
        keys = chosen.flatten(1)[:, None, None]
        mask = keys + (1 - keys) * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
        weights = (logits - logits.amax(-1, keepdim=True).detach()).exp() * mask
        shares = (weights + EPSILON / mask.shape[-1]) / (weights.sum(-1, keepdim=True) + EPSILON)
        mixed = (shares.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        attended = self.proj(mixed).view_as(refined)
        result: Tensor = chosen * attended + (1 - chosen) * refined
        return result
