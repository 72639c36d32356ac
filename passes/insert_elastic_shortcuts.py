"""y  becomes  y + a * f(P(x)),  f(x; Cin -> Cout) = repeat_{Cout/g}( (g/Cin) * sum_i x[i*g : (i+1)*g] ),  g = gcd

around a layer, y its convolution's or the batch norm's behind it (BiVM equations (9) and (10)), or around a block
(equation (12)). P pools 2x2 where the size halves. The factor a is learnable and stays in the network. The symbols of
the equations are lost in our copy of the paper: a reconstruction (R).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import fx

from mattecompress.analysis.regions import regions_in_order
from mattecompress.binarization.binarizable import Exclusions, layer_path
from mattecompress.facts import Facts, evaluate_size, size_symbols
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.elastic_shortcut import ElasticShortcut, ElasticShortcutConfig
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

_SAMPLES = (1, 2, 3, 8, 13)


class Span(NamedTuple):
    """What a shortcut leads over: a path to call it by, the value before and the value behind."""

    path: str
    before: fx.Node
    behind: fx.Node


@dataclass(frozen=True)
class InsertElasticShortcuts(Pass):
    """Add scaled shortcuts; afterwards each chosen layer or block that a shortcut fits has one.

    around: `layers`, convolutions that are or can become one-bit; `blocks`, regions with one way in and one out.
    initial: the factors; 0 leaves the network as it was, none draws them from U(0, 1) by the seed.
    exclude: patterns of layers or regions to leave alone.
    exclude_first, exclude_last: as of `binarize`, for layers.
    """

    around: Literal["layers", "blocks"] = "layers"
    initial: float | None = 1.0
    exclude: tuple[str, ...] = ()
    exclude_first: bool = True
    exclude_last: bool = True
    name: ClassVar[str] = "insert-elastic-shortcuts"

    def requires(self, program: Program) -> None:
        """Nothing is lowered; blocks are known where they are asked for."""
        expect(program.level is not Level.LOWERED, "the program is lowered: insert shortcuts before lowering")
        if self.around == "blocks":
            expect(program.has_regions, "no blocks are known: run partition-blocks before")
        else:
            self._exclusions.check(program)

    def ensures(self, program: Program) -> None:
        """No span that a shortcut fits is without."""
        left = [span.path for span in self._spans(program) if _is_open(program, span)]
        expect(not left, f"no shortcut leads over {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """One module a span."""
        generator = torch.Generator().manual_seed(context.seed)
        inserted = [self._fill(program, span, generator) for span in self._spans(program)]
        return f"{sum(inserted)} shortcuts over {len(inserted)} {self.around}" if any(inserted) else None

    def _fill(self, program: Program, span: Span, generator: torch.Generator) -> bool:
        if not _is_open(program, span):
            return False
        drawn = torch.rand((), generator=generator).item()
        _insert(program, span, drawn if self.initial is None else self.initial)
        return True

    @property
    def _exclusions(self) -> Exclusions:
        return Exclusions(self.exclude, self.exclude_first, self.exclude_last)

    def _spans(self, program: Program) -> Iterator[Span]:
        """Spans one by one: what is before one may be the shortcut that was just inserted."""
        if self.around == "layers":
            for layer in self._exclusions.layers(program):
                yield Span(layer_path(layer), layer.all_input_nodes[0], _norm_behind(program, layer))
            return
        for region, nodes in regions_in_order(program).items():
            ends = _ends_of(program, nodes)
            if ends and not any(fnmatchcase(region, pattern) for pattern in self.exclude):
                yield Span(region, *ends)


def _norm_behind(program: Program, layer: fx.Node) -> fx.Node:
    """The batch norm that alone reads the layer, or the layer."""
    user, *others = layer.users or [layer]
    follows = not others and user.op == "call_module" and isinstance(program.module(user), BatchNorm2d)
    return user if follows else layer


def _ends_of(program: Program, nodes: list[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """The only value that a region reads and the only one that is read from it."""
    own = set(nodes)
    read = {source for node in nodes for source in node.all_input_nodes if source not in own}
    read = {node for node in read if node.op != "get_attr" and program.facts(node).dtype is not None}
    given = {node for node in nodes if any(user not in own for user in node.users)}
    return (read.pop(), given.pop()) if len(read) == len(given) == 1 else None


def _is_open(program: Program, span: Span) -> bool:
    """Whether a shortcut fits and none is there."""
    if stride_between(program.facts(span.before), program.facts(span.behind)) is None:
        return False
    found = (node for node in (*span.behind.users, span.behind) if node.op == "call_module")
    return not any(
        isinstance(program.module(node), ElasticShortcut) and node.args[1] is span.before for node in found
    )


def stride_between(before: Facts, behind: Facts) -> Literal[1, 2] | None:
    """1 where two images have one size, 2 where the second has half of it, rounded up; else None."""
    if len(before.shape) != 4 or len(behind.shape) != 4 or before.shape[0] != behind.shape[0]:
        return None
    sizes = [*zip(before.shape[2:], behind.shape[2:], strict=True)]
    symbols = [symbol for pair in sizes for size in pair for symbol in size_symbols(size)]
    samples = [dict.fromkeys(symbols, value) for value in _SAMPLES]
    strides: tuple[Literal[1], Literal[2]] = (1, 2)
    for stride in strides:
        if all(
            -(-evaluate_size(large, sample) // stride) == evaluate_size(small, sample)
            for sample in samples
            for large, small in sizes
        ):
            return stride
    return None


def _insert(program: Program, span: Span, initial: float) -> None:
    before, behind = program.facts(span.before), program.facts(span.behind)
    stride = stride_between(before, behind)
    assert stride is not None
    config = ElasticShortcutConfig(int(before.shape[1]), int(behind.shape[1]), stride, initial)
    path = program.free_path(f"{span.path}_shortcut")
    program.add_module(path, ElasticShortcut(config).train(program.graph_module.training))
    with program.graph.inserting_after(span.behind):
        call = program.graph.call_module(path, (span.behind, span.before))
    call.meta["facts"] = behind.but(precision=None)
    span.behind.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
