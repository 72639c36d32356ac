"""Token routing becomes operations of fixed shape:

    P = choose_tokens(p[0] - p[1], limit),   y = scatter_tokens(attend(gather_tokens(x, P)), P, refined)

where in attention no key is seen that has no place. Routers and refinements become the operations they compose.

Source: MEMatte (AAAI 2025), section 3.3; the fixed shape is `route-tokens{form=static}`'s.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mattecompress import ops
from mattecompress.grafting import graft_module
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.modules.token_refinement import TokenRefinement
from mattecompress.modules.token_router import TokenRouter
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

assert ops
matte = torch.ops.matte

HIDDEN = 1e30
"""What is taken off the logit of a key without a place: its share is 0.

Unless all are without, and then nobody reads the result.
"""


@dataclass(frozen=True)
class LowerTokens(Pass):
    """Write static token routing as operations; afterwards only routing whose shapes depend on data is called."""

    name: ClassVar[str] = "lower-tokens"

    def ensures(self, program: Program) -> None:
        """None is left."""
        left = [node.name for node in _calls(program)]
        expect(not left, f"token routing is still called: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each call on its own."""
        calls = _calls(program)
        for call in calls:
            module = program.module(call)
            composed = (_StaticRouting if isinstance(module, RoutedAttention) else _Composed)(module)
            result = graft_module(program, composed, _inputs(call), str(call.target), call)
            call.replace_all_uses_with(result)
            program.graph.erase_node(call)
        return f"{len(calls)} modules" if calls else None


def _calls(program: Program) -> list[fx.Node]:
    return [
        node
        for node in program.called_modules()
        if isinstance(module := program.module(node), (TokenRouter, TokenRefinement))
        or (isinstance(module, RoutedAttention) and module.config.form == "static")
    ]


def _inputs(call: fx.Node) -> dict[str, fx.Node]:
    nodes = (node for node in call.args if isinstance(node, fx.Node))
    return {f"input{number}": node for number, node in enumerate(nodes)}


class _Composed(nn.Module):
    """The computation of a registered module, with its parts, in a module that is not registered."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.config, self.compute = module.config, type(module).forward
        for name, part in module.named_children():
            self.add_module(name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As of the module."""
        result: Tensor = self.compute(self, *inputs)
        return result


class _StaticRouting(nn.Module):
    """Routed attention of the static form in lowered operations."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.config, self.qkv, self.proj = module.config, module.qkv, module.proj

    def forward(self, x: Tensor, refined: Tensor, scores: Tensor) -> Tensor:
        """As of `RoutedAttention`."""
        tokens, channels = x.flatten(1, 2), x.shape[-1]
        margin = (scores[..., 0] - scores[..., 1]).flatten(1)
        places = matte.choose_tokens(margin, min(self.config.limit, margin.shape[1]))
        rows = self.qkv(matte.gather_tokens(tokens, places))
        batch, room, _ = rows.shape
        heads = self.config.heads
        q, k, v = rows.reshape(batch, room, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
        unseen = ((places >= 0).to(rows.dtype) - 1) * HIDDEN
        mixed = F.scaled_dot_product_attention(q, k, v, unseen[:, None, None])
        attended = self.proj(mixed.transpose(1, 2).flatten(2))
        result: Tensor = matte.scatter_tokens(attended, places, refined.flatten(1, 2)).view_as(refined)
        return result
