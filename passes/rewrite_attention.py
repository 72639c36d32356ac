"""softmax(s q k^T + q . Rh[h, kh] + q . Rw[w, kw]) v  for all queries at once, which builds a map of all pairs, becomes

    attend(q_t, k, v, bias_t),   bias_t[(h, w), (kh, kw)] = (q . Rh)[h, w, kh] + (q . Rw)[h, w, kw]

for one tile t of rows h after the other, where `attend` is PyTorch's exact fused attention, which keeps no map; only the
bias of a tile is built. Without relative positions there is one tile.

Source: Dao et al., "FlashAttention", 2022, for fused attention; the tiles are ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mattecompress.attention import Attention, find_attention, grid_of
from mattecompress.errors import UserError
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

aten = torch.ops.aten
attend = aten.scaled_dot_product_attention.default


class TileError(UserError):
    """A tile without queries."""


@dataclass(frozen=True)
class RewriteAttention(Pass):
    """Compute attention over whole images in fused form, exactly; afterwards none builds its map of all pairs.

    queries: of one tile, at most, but at least a row of the grid; fewer take less memory.
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
            fixed = all(isinstance(size, int) for size in program.facts(attention.source).shape[1:])
            expect(fixed, "the program's size is open: fix it with -p 'set-resolution{height=512 width=512}'")

    def ensures(self, program: Program) -> None:
        """None is left in the plain form."""
        left = [attention.result.name for attention in find_attention(program)]
        expect(not left, f"attention still builds its map: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each attention on its own."""
        found = find_attention(program)
        tiles = [self._rewrite(program, attention) for attention in found]
        return f"{len(found)} attentions in {sum(tiles)} tiles" if found else None

    def _rewrite(self, program: Program, attention: Attention) -> int:
        height, width = grid_of(program, attention)
        rows = max(1, self.queries // width) if attention.vertical else height
        write = _Writer(program, attention.result)
        key, value = (write(aten.unsqueeze.default, node, 0) for node in (attention.key, attention.value))
        terms = _terms(write, attention, (height, width))
        pieces = []
        for first in range(0, height, rows):
            last = min(first + rows, height)
            query = attention.query
            if (first, last) != (0, height):
                query = write(aten.slice.Tensor, query, 1, first * width, last * width)
            query = write(aten.unsqueeze.default, query, 0)
            bias = _bias(write, terms, first, last, (height, width)) if terms else None
            inputs = (query, key, value, bias, 0.0, False)
            pieces.append(write(attend, *inputs, scale=attention.scale))
        whole = pieces[0] if len(pieces) == 1 else write(aten.cat.default, pieces, 2)
        program.replace(attention.result, write(aten.squeeze.dim, whole, 0))
        return len(pieces)


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


def _terms(write: _Writer, attention: Attention, grid: tuple[int, int]) -> list[fx.Node]:
    """The vertical and the horizontal term, laid out in memory in the order of their axes, or none.

    A sum of tiles is laid out like its summands, and can be read as rows of keys without another copy.
    """
    if attention.vertical is None or attention.horizontal is None:
        return []
    terms = zip((attention.vertical, attention.horizontal), grid, strict=True)
    flat = ((write(aten.reshape.default, term, [-1]), keys) for term, keys in terms)
    return [write(aten.reshape.default, term, [-1, *grid, keys]) for term, keys in flat]


def _bias(write: _Writer, terms: list[fx.Node], first: int, last: int, grid: tuple[int, int]) -> fx.Node:
    """What relative positions add for the queries of some rows, (1, N*heads, rows*W, H*W)."""
    height, width = grid
    vertical, horizontal = (
        write(aten.unsqueeze.default, write(aten.slice.Tensor, term, 1, first, last), axis)
        for term, axis in zip(terms, (4, 3), strict=True)
    )
    total = write(aten.add.Tensor, vertical, horizontal)
    queries = (last - first) * width
    return write(aten.unsqueeze.default, write(aten.reshape.default, total, [-1, queries, height * width]), 0)
