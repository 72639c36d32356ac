"""softmax(s q k^T + q . Rh[h, kh] + q . Rw[w, kw]) v  for all queries at once, which builds a map of all pairs, becomes

    attend_on_grid(q, k, v, V, U),   V = q . Rh,  U = q . Rw

which computes tile after tile, or, without relative positions, PyTorch's exact fused attention: neither keeps a map.

Source: Dao et al., "FlashAttention", 2022, for fused attention.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mattecompress import ops
from mattecompress.analysis.attention import Attention, find_attention, require_fixed_grid
from mattecompress.errors import UserError
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

assert ops
aten, matte = torch.ops.aten, torch.ops.matte
attend = aten.scaled_dot_product_attention.default


class TileError(UserError):
    """A tile without queries."""


@dataclass(frozen=True)
class RewriteAttention(Pass):
    """Compute attention over whole images in fused form, exactly; afterwards none builds its map of all pairs.

    queries: of one tile, at most, but at least a row of the grid; fewer take less memory, too few more time.
    """

    queries: int = 256
    name: ClassVar[str] = "rewrite-attention"

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise TileError(f"queries={self.queries}: a tile needs at least one")

    def requires(self, program: Program) -> None:
        """Height and width are fixed where there are relative positions."""
        expect(
            program.level is not Level.LOWERED,
            "the program is lowered: run rewrite-attention before lowering",
        )
        for attention in find_attention(program):
            if attention.vertical is not None:
                require_fixed_grid(program, attention)

    def ensures(self, program: Program) -> None:
        """None is left in the plain form."""
        left = [attention.result.name for attention in find_attention(program)]
        expect(not left, f"attention still builds its map: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each attention on its own."""
        found = find_attention(program)
        for attention in found:
            self._rewrite(program, attention)
        return f"{len(found)} attentions" if found else None

    def _rewrite(self, program: Program, attention: Attention) -> None:
        write = _Writer(program, attention.result)
        read = (attention.query, attention.key, attention.value)
        if attention.vertical is None:
            query, key, value = (write(aten.unsqueeze.default, node, 0) for node in read)
            attended = write(attend, query, key, value, None, 0.0, False, scale=attention.scale)
            program.replace(attention.result, write(aten.squeeze.dim, attended, 0))
        else:
            terms = (attention.vertical, attention.horizontal)
            result = write(matte.attend_on_grid.default, *read, *terms, attention.scale, self.queries)
            program.replace(attention.result, result)


class _Writer:
    """Writes operations in front of a node."""

    def __init__(self, program: Program, before: fx.Node) -> None:
        self.program = program
        self.before = before

    def __call__(self, target: Any, *arguments: Any, **options: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.before):
            node = self.program.graph.call_function(target, arguments, options)
        node.meta["facts"] = self.program.facts(self.before)
        return node
