"""sigmoid, tanh, the mean over a plane and bilinear resizing become the operations of those names in `matte::`.

They compute the same; the new ones say how they round. In a program that rounds to codes or signs, the last
place of a float decides which code, so that only a stated rounding gives the same answer on every backend.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.rounding import rounds

aten, matte = torch.ops.aten, torch.ops.matte

FUNCTIONS: dict[Any, Any] = {
    aten.sigmoid.default: matte.sigmoid.default,
    aten.tanh.default: matte.tanh.default,
    aten.adaptive_avg_pool2d.default: matte.plane_mean.default,
    aten.mean.dim: matte.plane_mean.default,
    aten.upsample_bilinear2d.vec: matte.resize_bilinear.default,
}


@dataclass(frozen=True)
class LowerFunctions(Pass):
    """In a program that rounds, replace functions of floats by those whose rounding is stated; none is left afterwards."""

    name: ClassVar[str] = "lower-functions"

    def ensures(self, program: Program) -> None:
        """No function that rounds as PyTorch pleases is left in a program that rounds."""
        expect(not _unstated(program), "a function without a stated rounding survived")

    def apply(self, program: Program, context: Context) -> str | None:
        """Replace each call."""
        calls = _unstated(program)
        for node in calls:
            with program.graph.inserting_before(node):
                stated = program.graph.call_function(FUNCTIONS[node.target], _arguments(node))
            program.replace(node, stated)
        return f"{len(calls)} functions with stated rounding" if calls else None


def _unstated(program: Program) -> list[fx.Node]:
    if not rounds(program):
        return []
    return [
        node for node in program.operations() if node.target in FUNCTIONS and _is_stated_for(program, node)
    ]


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Those of the resize are the same; the others take the tensor alone."""
    return node.args if node.target is aten.upsample_bilinear2d.vec else node.args[:1]


def _is_stated_for(program: Program, node: fx.Node) -> bool:
    """Float32 in and out; a mean to one pixel."""
    source, facts = node.args[0], program.facts(node)
    assert isinstance(source, fx.Node)
    if program.facts(source).dtype is not torch.float32 or facts.dtype is not torch.float32:
        return False
    if FUNCTIONS[node.target] is not matte.plane_mean.default:
        return True
    if len(facts.shape) != 4 or facts.shape[2:] != (1, 1):
        return False
    axes: Any = node.args[1]
    return node.target is not aten.mean.dim or {int(axis) % 4 for axis in axes} == {2, 3}
