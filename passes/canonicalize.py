"""Rules: an integer that is always the same becomes a literal; a slice that keeps everything becomes its input."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mattecompress.analysis.propagation import propagate
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

slice_tensor = torch.ops.aten.slice.Tensor


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Remove what computes nothing; afterwards no constant integer is computed and no slice keeps all of its input."""

    name: ClassVar[str] = "canonicalize"

    def ensures(self, program: Program) -> None:
        """Nothing removable is left."""
        expect(not _constant_integers(program), "a constant integer is still computed")
        expect(not _idle_slices(program), "a slice that keeps everything survived")

    def apply(self, program: Program, context: Context) -> str | None:
        """Apply the rules once; each makes no new match for the other."""
        integers, slices = simplify(program)
        return f"{integers} constant integers, {slices} idle slices" if integers + slices else None


def simplify(program: Program) -> tuple[int, int]:
    """Apply the rules in place; return how many integers and slices went."""
    propagate(program)
    integers = _constant_integers(program)
    for node in integers:
        _write_literal(node, node.meta["value"])
        program.graph.erase_node(node)
    slices = _idle_slices(program)
    for node in slices:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        program.graph.erase_node(node)
    return len(integers), len(slices)


def _constant_integers(program: Program) -> list[fx.Node]:
    nodes = [node for node in program.operations() if node.meta.get("value") is not None]
    return [node for node in nodes if program.facts(node).dtype is None]


def _write_literal(node: fx.Node, value: int) -> None:
    def literal(argument: fx.Node) -> Any:
        return value if argument is node else argument

    for user in list(node.users):
        user.args = fx.map_arg(user.args, literal)
        user.kwargs = fx.map_arg(user.kwargs, literal)


def _idle_slices(program: Program) -> list[fx.Node]:
    return [node for node in program.find(slice_tensor) if _keeps_all(program, node)]


def _keeps_all(program: Program, node: fx.Node) -> bool:
    source, *bounds = node.args
    start = bounds[1] if len(bounds) > 1 else None
    step = bounds[3] if len(bounds) > 3 else 1
    assert isinstance(source, fx.Node)
    return bool(start in (None, 0) and step == 1) and program.facts(source).shape == program.facts(node).shape
