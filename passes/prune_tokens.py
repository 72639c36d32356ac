"""y = Attn(x)  over N tokens  becomes  y_S = Attn(x_S)  over the K best of them, and 0 for the others

    dynamicvit   best by a learned predictor of x, p_i = TokenRouter(x)_i[0]
    evit         best by the attention of the mean query, s_i = mean over heads of softmax(mean(q) k^T / sqrt(d))_i, and one
                 token more, the sum of the others weighted by s, among those that are attended to

In block number b of those with attention over the whole image, K = keep^b N, taken from what was kept before.

Source: Rao et al., "DynamicViT", NeurIPS 2021; Liang et al., "EViT", ICLR 2022. How MEMatte's authors attached them to a
network that needs its grid back and has no class token is not published, so that this is a reconstruction (R): tokens
that were dropped keep their value and are no longer part of such attention; the mean query stands for the class token's.
Relative positions are left out, as in `route-tokens`. The predictor is new and has to be trained.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mattecompress.analysis.attention import (
    Attention,
    attention_path,
    block_path,
    find_attention,
    grid_of,
    heads_of,
    insert_module,
    require_fixed_grid,
)
from mattecompress.errors import UserError
from mattecompress.grafting import graft_module
from mattecompress.modules.token_router import TokenRouter, TokenRouterConfig
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

layer_norm = torch.ops.aten.layer_norm.default


class KeepError(UserError):
    """A share of tokens out of range."""


@dataclass(frozen=True)
class PruneTokens(Pass):
    """Drop tokens from attention over whole images, more in each block; afterwards none takes all tokens.

    method: what tells which to keep.
    keep: share of the tokens that each block keeps of those before.
    fuse: evit's one token for those that are dropped.
    """

    method: Literal["dynamicvit", "evit"] = "dynamicvit"
    keep: float = 0.7
    fuse: bool = True
    name: ClassVar[str] = "prune-tokens"

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise KeepError(f"keep={self.keep}: expected a share of the tokens between 0 and 1")

    def requires(self, program: Program) -> None:
        """Nothing is lowered, height and width are fixed, and each attention that a predictor is for follows a layer norm."""
        expect(program.level is not Level.LOWERED, "the program is lowered: run prune-tokens before lowering")
        for attention in find_attention(program):
            require_fixed_grid(program, attention)
            expect(
                self.method == "evit" or attention.source.target is layer_norm,
                f"%{attention.source.name} before attention is no layer norm",
            )

    def ensures(self, program: Program) -> None:
        """None is left that takes all tokens."""
        left = [attention.result.name for attention in find_attention(program)]
        expect(not left, f"attention takes all tokens: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """One attention after the other, each with what the one before has kept."""
        found = find_attention(program)
        kept: dict[str, fx.Node] = {}
        counts = []
        for number, (attention, predictor) in enumerate(
            zip(found, self._predictors(program, found, context.seed), strict=True), start=1
        ):
            tokens = int(program.facts(attention.query).shape[1])
            counts.append(max(1, int(tokens * self.keep**number)))
            kept = {"kept": self._prune(program, attention, predictor, kept, counts[-1])}
        return f"{len(found)} attentions of {', '.join(map(str, counts))} tokens" if found else None

    def _predictors(
        self, program: Program, found: list[Attention], seed: int
    ) -> list[TokenRouter] | list[None]:
        if self.method == "evit":
            return [None] * len(found)
        widths = [int(program.facts(attention.source).shape[-1]) for attention in found]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [TokenRouter(TokenRouterConfig(width)) for width in widths]

    def _prune(
        self,
        program: Program,
        attention: Attention,
        predictor: TokenRouter | None,
        before: dict[str, fx.Node],
        count: int,
    ) -> fx.Node:
        def write(module: nn.Module, **inputs: fx.Node) -> fx.Node:
            return graft_module(program, module, inputs, path, attention.result)

        path, heads = attention_path(program, attention), heads_of(program, attention)
        if predictor is None:
            mean = MeanQueryScores(heads, attention.scale, grid_of(program, attention))
            scores = write(mean, query=attention.query, key=attention.key, **before)
        else:
            inputs = (attention.source.all_input_nodes[0], *before.values())
            router = block_path(program, attention, "router")
            scores = insert_module(program, attention, router, predictor, *inputs)
        kept = write(Selection(count), scores=scores, **before)
        fuse = {"scores": scores} if self.fuse and predictor is None else {}
        parts = {"query": attention.query, "key": attention.key, "value": attention.value}
        form = PrunedAttention(heads, attention.scale, count)
        program.replace(attention.result, write(form, **parts, kept=kept, **fuse))
        with program.graph.inserting_after(attention.projection_out):
            masked = program.graph.call_function(torch.ops.aten.mul.Tensor, (attention.projection_out, kept))
        masked.meta["facts"] = program.facts(attention.projection_out)
        attention.projection_out.replace_all_uses_with(masked, delete_user_cb=lambda user: user is not masked)
        return kept


class MeanQueryScores(nn.Module):
    """How much the mean of the queries attends to each token, written into the program as operations."""

    def __init__(self, heads: int, scale: float, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.scale, self.grid = heads, scale, grid

    def forward(self, query: Tensor, key: Tensor, kept: Tensor | None = None) -> Tensor:
        """q and k (N*heads, L, C), among those kept of (N,H,W,1), to (N,H,W,1)."""
        length, width = query.shape[1:]
        q, k = (tensor.reshape(-1, self.heads, length, width) for tensor in (query, key))
        if kept is None:
            logits = q.mean(2, keepdim=True) @ k.transpose(-2, -1) * self.scale
        else:
            among = kept.reshape(-1, 1, length, 1)
            mean = (q * among).sum(2, keepdim=True) / among.sum(2, keepdim=True)
            logits = mean @ k.transpose(-2, -1) * self.scale
            logits = logits.masked_fill(among.transpose(-2, -1) == 0, float("-inf"))
        return logits.softmax(-1).mean(1).reshape(-1, *self.grid, 1)


class Selection(nn.Module):
    """The tokens of the best scores, written into the program as operations."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, scores: Tensor, kept: Tensor | None = None) -> Tensor:
        """Scores in the first channel of (N,H,W,C), among those kept of (N,H,W,1), to zeros and ones (N,H,W,1)."""
        height, width = scores.shape[1:3]
        flat = scores[..., 0].reshape(-1, height * width)
        if kept is not None:
            flat = flat.masked_fill(kept.reshape(-1, height * width) == 0, float("-inf"))
        best = flat.argsort(dim=1, descending=True, stable=True)[:, : self.count]
        ones = torch.ones_like(flat)[:, : self.count]
        return torch.zeros_like(flat).scatter(1, best, ones).reshape(-1, height, width, 1)


class PrunedAttention(nn.Module):
    """Attention among kept tokens, written into the program as operations."""

    def __init__(self, heads: int, scale: float, count: int) -> None:
        super().__init__()
        self.heads, self.scale, self.count = heads, scale, count

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scores: Tensor | None = None
    ) -> Tensor:
        """q, k and v, (N*heads, L, C), to r of that shape, 0 where kept, (N,H,W,1), is; scores weigh what is fused."""
        length, width = query.shape[1:]
        q, k, v = (tensor.reshape(-1, self.heads, length, width) for tensor in (query, key, value))
        flat = kept.reshape(-1, length)
        best = flat.argsort(dim=1, descending=True, stable=True)[:, : self.count]
        index = best[:, None, :, None].expand(-1, self.heads, -1, width)
        some_q, some_k, some_v = (tensor.gather(2, index) for tensor in (q, k, v))
        if scores is not None:
            weights = (scores[..., 0].reshape(-1, length) * (1 - flat))[:, None, None]
            some_k, some_v = torch.cat([some_k, weights @ k], 2), torch.cat([some_v, weights @ v], 2)
        mixed = F.scaled_dot_product_attention(some_q, some_k, some_v, scale=self.scale)
        return torch.zeros_like(q).scatter(2, index, mixed).flatten(0, 1)
