"""y = Attn(norm(x))  becomes  y = Attn_S(norm(x)) for the tokens S that a router chooses by x, and refine(x) for the others

with router, branch and attention as in `mattecompress.modules`: `token_router`, `token_refinement`, `routed_attention`.
Relative positions are left out: S is a list without a grid. Router and branch are new and have to be trained.

Source: MEMatte, "Memory Efficient Matting with Adaptive Token Routing", AAAI 2025, whose published program leaves relative
positions out too, which its paper does not say.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx, nn

from mattecompress.analysis.attention import (
    Attention,
    block_path,
    find_attention,
    heads_of,
    insert_module,
    replace_attention,
)
from mattecompress.modules.routed_attention import Form, RoutedAttention, RoutedAttentionConfig
from mattecompress.modules.token_refinement import TokenRefinement, TokenRefinementConfig
from mattecompress.modules.token_router import TokenRouter, TokenRouterConfig, Variant
from mattecompress.options import OptionError
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

layer_norm = torch.ops.aten.layer_norm.default


@dataclass(frozen=True)
class RouteTokens(Pass):
    """Send chosen tokens through attention over whole images; afterwards no such attention takes all.

    limit: tokens of an image that attend at most.
    form: dynamic, or static for programs whose shapes must not depend on data, as of `RoutedAttention`.
    variant: of router and branch, the published program's (code) or the paper's.
    """

    limit: int = 18500
    form: Form = "dynamic"
    variant: Variant = "code"
    name: ClassVar[str] = "route-tokens"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise OptionError(f"limit={self.limit}: expected at least 1")

    def requires(self, program: Program) -> None:
        """Nothing is lowered; each attention follows a layer norm and is scaled as usual."""
        expect(program.level is not Level.LOWERED, "the program is lowered: run route-tokens before lowering")
        for attention in find_attention(program):
            source, width = attention.source, int(program.facts(attention.query).shape[-1])
            expect(source.target is layer_norm, f"%{source.name} before attention is no layer norm")
            usual = math.isclose(attention.scale, width**-0.5)
            expect(
                usual,
                f"%{attention.result.name} is scaled by {attention.scale:g}, not by the root of {width}",
            )

    def ensures(self, program: Program) -> None:
        """None is left that takes all tokens."""
        left = [attention.result.name for attention in find_attention(program)]
        expect(not left, f"attention takes all tokens: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Three modules for each attention; the new ones are drawn from the seed."""
        found = find_attention(program)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            for attention in found:
                self._route(program, attention)
        return f"{len(found)} attentions for at most {self.limit} tokens" if found else None

    def _route(self, program: Program, attention: Attention) -> None:
        channels = int(program.facts(attention.source).shape[-1])
        x = attention.source.args[0]
        assert isinstance(x, fx.Node)
        path = partial(block_path, program, attention)
        config = RoutedAttentionConfig(channels, heads_of(program, attention), self.limit, self.form)
        attend = RoutedAttention(config)
        _take_weights(program, attention, attend)
        refine = TokenRefinement(TokenRefinementConfig(channels, self.variant))
        router = TokenRouter(TokenRouterConfig(channels, self.variant))
        refined = insert_module(program, attention, path("refinement"), refine, x)
        scores = insert_module(program, attention, path("router"), router, x)
        replace_attention(program, attention, attend, attention.source, refined, scores)


def _take_weights(program: Program, attention: Attention, module: RoutedAttention) -> None:
    layers = ((module.qkv, attention.projection_in), (module.proj, attention.projection_out))
    for layer, node in layers:
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        assert isinstance(weight, fx.Node)
        layer.weight = nn.Parameter(program.tensor(weight).detach().clone())
        layer.bias.data.zero_()
        if isinstance(bias, fx.Node):
            layer.bias = nn.Parameter(program.tensor(bias).detach().clone())
