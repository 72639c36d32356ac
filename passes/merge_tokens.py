"""r = softmax(q k^T s) v  over N tokens  becomes  r = unmerge(softmax(q' k'^T s + log n) v')  over fewer

    m      = mean over heads of k, of length 1
    A, B   = tokens at even and at odd places;   b(a) = argmax_b m_a . m_b
    merge    those a of the largest m_a . m_b(a) into b(a):  q', k', v' are means over the n tokens that became one
    unmerge  gives each of the n tokens what their one token got

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023. How MEMatte's authors attached it to a network that
needs its grid back is not published, so that this is a reconstruction (R): tokens are merged before each attention over
the whole image and unmerged behind it. Means of q, k and v are those of merged tokens, since both are linear.
Relative positions are left out, as in `route-tokens`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.analysis.attention import attention_path, find_attention, heads_of, require_fixed_grid
from mattecompress.errors import UserError
from mattecompress.grafting import graft_module
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program


class ShareError(UserError):
    """A share of tokens out of range."""


@dataclass(frozen=True)
class MergeTokens(Pass):
    """Merge similar tokens around attention over whole images; afterwards none takes all tokens.

    share: of the tokens, that disappear into others; at most 1/2.
    proportional: let a token count as often as tokens became it.
    """

    share: float = 0.5
    proportional: bool = True
    name: ClassVar[str] = "merge-tokens"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ShareError(f"share={self.share}: expected more than 0 and at most 0.5 of the tokens")

    def requires(self, program: Program) -> None:
        """Nothing is lowered, and height and width are fixed."""
        expect(program.level is not Level.LOWERED, "the program is lowered: run merge-tokens before lowering")
        for attention in find_attention(program):
            require_fixed_grid(program, attention)

    def ensures(self, program: Program) -> None:
        """None is left that takes all tokens."""
        left = [attention.result.name for attention in find_attention(program)]
        expect(not left, f"attention takes all tokens: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each attention on its own."""
        found = find_attention(program)
        merged = 0
        for attention in found:
            tokens = int(program.facts(attention.query).shape[1])
            merged = min(int(tokens * self.share), (tokens + 1) // 2)
            form = MergedAttention(heads_of(program, attention), attention.scale, merged, self.proportional)
            inputs = {"query": attention.query, "key": attention.key, "value": attention.value}
            path = attention_path(program, attention)
            program.replace(attention.result, graft_module(program, form, inputs, path, attention.result))
        return f"{len(found)} attentions, {merged} tokens merged in the last" if found else None


class MergedAttention(nn.Module):
    """Attention among merged tokens, written into the program as operations."""

    def __init__(self, heads: int, scale: float, merged: int, proportional: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.merged, self.proportional = heads, scale, merged, proportional

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """q, k and v, (N*heads, L, C), to r of that shape."""
        length, width = query.shape[1:]
        q, k, v = (tensor.reshape(-1, self.heads, length, width) for tensor in (query, key, value))
        matching = Matching(k.mean(1), self.merged)
        sizes = matching.merged_sums(torch.ones_like(k[:, :1, :, :1]))
        q, k, v = (matching.merged_sums(tensor) / sizes for tensor in (q, k, v))
        offset = sizes.log().transpose(-2, -1) if self.proportional else None
        mixed = F.scaled_dot_product_attention(q, k, v, offset, scale=self.scale)
        return matching.unmerged(mixed).flatten(0, 1)


class Matching:
    """Which tokens become which.

    metric: (N,L,C), whose direction says what is similar.
    merged: how many of the tokens at even places disappear.
    """

    rows = 1024
    """Of the similarities, at a time."""

    def __init__(self, metric: Tensor, merged: int) -> None:
        self.length = metric.shape[1]
        metric = metric * (metric * metric).sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()
        even, odd = metric[:, ::2], metric[:, 1::2].transpose(-2, -1)
        found = [_best(part @ odd) for part in even.split(self.rows, dim=1)]
        likeness, nearest = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        order = likeness.argsort(dim=1, descending=True, stable=True)
        self.gone, self.staying = order[:, :merged], order[:, merged:]
        self.into = nearest.gather(1, self.gone)

    def merged_sums(self, x: Tensor) -> Tensor:
        """(N,heads,L,C) to (N,heads,L-merged,C): the tokens that stay, then those at odd places, each a sum."""
        even, odd = x[:, :, ::2], x[:, :, 1::2]
        sums = odd.scatter_add(2, _spread(self.into, odd), even.gather(2, _spread(self.gone, even)))
        return torch.cat([even.gather(2, _spread(self.staying, even)), sums], dim=2)

    def unmerged(self, x: Tensor) -> Tensor:
        """(N,heads,L-merged,C) to (N,heads,L,C)."""
        staying = self.staying.shape[1]
        kept, odd = x[:, :, :staying], x[:, :, staying:]
        copies = odd.gather(2, _spread(self.into, odd))
        order = torch.cat([self.gone, self.staying], dim=1)
        even = torch.cat([copies, kept], dim=2)
        even = even.gather(2, _spread(order.argsort(dim=1, stable=True), even))
        missing = even.shape[2] - odd.shape[2]
        paired = torch.stack([even, F.pad(odd, (0, 0, 0, missing))], dim=3).flatten(2, 3)
        return paired[:, :, : self.length]


def _best(products: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, and where it is."""
    return products.amax(-1), products.argmax(-1)


def _spread(index: Tensor, x: Tensor) -> Tensor:
    """An index of tokens (N,K) for all heads and channels of x (N,heads,L,C)."""
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
