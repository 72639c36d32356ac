"""An operation on constants alone becomes the constant that it gives.

Positions and masks that a network computes from its size are such, once that is fixed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute once what no input reaches; afterwards every operation depends on an input.

    For programs that are trained no more: what is computed from a parameter no longer follows it.
    """

    name: ClassVar[str] = "fold-constants"

    def ensures(self, program: Program) -> None:
        """None is left."""
        left = [node.name for node in program.operations() if _is_constant(program, node)]
        expect(not left, f"still computed from constants: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """In order, so that what reads a folded node is folded too."""
        count = 0
        for node in list(program.operations()):
            if _is_constant(program, node):
                folded = program.constant(program.free_path(f"folded_{node.name}"), _value(program, node))
                node.replace_all_uses_with(folded)
                program.graph.erase_node(node)
                count += 1
        return f"{count} operations" if count else None


def _is_constant(program: Program, node: fx.Node) -> bool:
    fixed = all(isinstance(size, int) for size in program.facts(node).shape)
    alone = all(source.op == "get_attr" for source in node.all_input_nodes)
    returned = any(user.op == "output" for user in node.users)
    return node.op == "call_function" and fixed and alone and not returned


@torch.no_grad()
def _value(program: Program, node: fx.Node) -> Tensor:
    arguments, keywords = fx.map_arg((node.args, node.kwargs), program.tensor)
    value: Any = node.target(*arguments, **keywords)  # type: ignore[operator]
    result: Tensor = value.detach().clone().contiguous()
    return result
