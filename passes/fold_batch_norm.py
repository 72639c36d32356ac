"""y = (conv(x, W) + b - mean) / sigma * gamma + beta,  sigma = sqrt(var + eps)

becomes one convolution with W' = W * gamma / sigma per output channel and b' = beta + (b - mean) * gamma / sigma.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.convolutions import bias_of
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.rounding import rounds

conv2d = torch.ops.aten.conv2d.default


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold each inference batch norm into the convolution before it; afterwards no such pair remains.

    exact: leave a program that rounds to codes or signs alone, since a folded weight rounds otherwise.
    """

    exact: bool = False
    name: ClassVar[str] = "fold-batch-norm"

    def ensures(self, program: Program) -> None:
        """No pair that is to be folded is left."""
        expect(not self._pairs(program), "a convolution and batch norm pair survived")

    def apply(self, program: Program, context: Context) -> str | None:
        """Rewrite every pair, and those that come of it: a batch norm may follow another."""
        count = 0
        while pairs := self._pairs(program):
            for convolution, norm in pairs:
                _fold(program, convolution, norm)
            count += len(pairs)
        return f"folded {count} batch norms" if count else None

    def _pairs(self, program: Program) -> list[tuple[fx.Node, fx.Node]]:
        return [] if self.exact and rounds(program) else _pairs(program)


def _pairs(program: Program) -> list[tuple[fx.Node, fx.Node]]:
    norms = program.called_modules(BatchNorm2d)
    return [(producer, norm) for norm in norms if _is_foldable(producer := norm.args[0])]  # type: ignore[misc]


def _is_foldable(node: object) -> bool:
    """A convolution that only the batch norm reads, on weights that only it reads and a bias that the program holds."""
    if not (isinstance(node, fx.Node) and node.target is conv2d and len(node.users) == 1):
        return False
    weight, bias = node.args[1], bias_of(node)
    held = bias is None or bias.op == "get_attr"
    return held and isinstance(weight, fx.Node) and weight.op == "get_attr" and len(weight.users) == 1


def _fold(program: Program, convolution: fx.Node, norm_call: fx.Node) -> None:
    norm = program.module(norm_call, BatchNorm2d)
    scale, shift = norm.scale_and_shift()
    x, weight, bias, *rest = [*convolution.args, None][: max(3, len(convolution.args))]
    assert isinstance(weight, fx.Node)
    folded = program.tensor(weight).double() * scale[:, None, None, None]
    if isinstance(bias, fx.Node):
        shift = shift + program.tensor(bias).double() * scale
    new_weight = _write_over(program, weight, folded)
    if isinstance(bias, fx.Node) and len(bias.users) == 1:
        new_bias = _write_over(program, bias, shift)
    else:
        owner = str(weight.target).rpartition(".")[0]
        path = program.free_path(f"{owner}.bias" if owner else "bias")
        new_bias = program.constant(path, nn.Parameter(shift.float().detach()))
    with program.graph.inserting_after(convolution):
        merged = program.graph.call_function(conv2d, (x, new_weight, new_bias, *rest))
    merged.meta["facts"] = convolution.meta["facts"]
    norm_call.replace_all_uses_with(merged)
    program.graph.erase_node(norm_call)
    program.graph.erase_node(convolution)


def _write_over(program: Program, node: fx.Node, value: Tensor) -> fx.Node:
    """Other numbers under the name that a tensor has; a buffer stays one."""
    trained, stored = isinstance(program.tensor(node), nn.Parameter), value.float().detach()
    return program.constant(str(node.target), nn.Parameter(stored) if trained else stored, replaces=True)
