"""y = x * scale + shift,  scale = weight / sqrt(var + eps),  shift = bias - mean * scale

of an inference batch norm becomes a product and a sum with these constants; every bit is the same.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class LowerBatchNorm(Pass):
    """Write each inference batch norm as a product and a sum; afterwards none is called.

    Behind a convolution of floats `fold-batch-norm` is faster, but rounds otherwise.
    """

    name: ClassVar[str] = "lower-batch-norm"

    def requires(self, program: Program) -> None:
        """They compute in float32 or float64, as their constants do."""
        others = [
            call.name
            for call in program.called_modules(BatchNorm2d)
            if program.facts(call).dtype not in (torch.float32, torch.float64)
        ]
        expect(not others, f"{', '.join(others)} in half precision: run fold-batch-norm before cast-half")

    def ensures(self, program: Program) -> None:
        """None is left."""
        expect(not program.called_modules(BatchNorm2d), "a batch norm is still called")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each call on its own."""
        calls = program.called_modules(BatchNorm2d)
        for call in calls:
            norm = program.module(call)
            assert isinstance(norm, BatchNorm2d)
            scale, shift = norm.scale_and_shift()
            with program.graph.inserting_before(call):
                scaled = _with_constant(program, call, aten.mul.Tensor, call.args[0], "scale", scale)
                total = _with_constant(program, call, aten.add.Tensor, scaled, "shift", shift)
            call.replace_all_uses_with(total)
            program.graph.erase_node(call)
        return f"{len(calls)} batch norms" if calls else None


def _with_constant(
    program: Program, call: fx.Node, target: Any, value: Any, name: str, constant: Tensor
) -> fx.Node:
    """An operation on a value and a constant of each channel, in the place of a call."""
    facts = program.facts(call)
    shaped = constant.detach()[:, None, None].to(facts.dtype)
    node = program.graph.call_function(target, (value, program.constant(f"{call.target}.{name}", shaped)))
    node.meta["facts"] = facts
    return node
