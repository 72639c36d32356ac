"""A trainable module that only composes operations becomes these operations.

    ElasticShortcut   y + a * f(P(x)), with a as a constant; nothing where a is 0
    SpatialMask       the comparison of the coarse alpha with itself at half the size

Both compute what the modules compute, in the same order: every bit is the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from mattecompress.analysis.propagation import program_symbols
from mattecompress.modules.elastic_shortcut import ElasticShortcut
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class ExpandModules(Pass):
    """Write elastic shortcuts and spatial masks as operations; afterwards none is called."""

    name: ClassVar[str] = "expand-modules"

    def requires(self, program: Program) -> None:
        """Sizes are fixed where there is a mask, whose smaller size is a number."""
        masks = program.called_modules(SpatialMask)
        expect(
            not (masks and program_symbols(program)),
            "a mask cannot be expanded at an open size: fix it with -p 'set-resolution{height=288 width=512}'",
        )

    def ensures(self, program: Program) -> None:
        """None is left."""
        left = [node.name for kind in EXPANSIONS for node in program.called_modules(kind)]
        expect(not left, f"modules are still called: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each call on its own."""
        counts = []
        for kind, expand in EXPANSIONS.items():
            calls = program.called_modules(kind)
            for call in calls:
                result = expand(_Writer(program, call), call)
                call.replace_all_uses_with(result)
                program.graph.erase_node(call)
            counts += [f"{len(calls)} of {kind.__name__}"] if calls else []
        return ", ".join(counts) or None


class _Writer:
    """Writes operations and constants in front of a call."""

    def __init__(self, program: Program, call: fx.Node) -> None:
        self.program = program
        self.call = call
        self.module: Any = program.module(call)

    def __call__(self, target: Any, *arguments: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.call):
            node = self.program.graph.call_function(target, arguments)
        node.meta["facts"] = self.program.facts(self.call)
        return node

    def number(self, name: str, value: float | Tensor) -> fx.Node:
        """A constant (1,1,1,1) beside the module."""
        dtype = self.program.facts(self.call).dtype
        constant = torch.as_tensor(value, dtype=dtype).detach().clone().reshape(1, 1, 1, 1)
        path = self.program.free_path(f"{self.call.target}_{name}_of_{self.call.name}")
        return self.program.constant(path, constant)


def _expand_shortcut(write: _Writer, call: fx.Node) -> fx.Node:
    y, x = call.args
    assert isinstance(y, fx.Node) and isinstance(x, fx.Node)
    config, factor = write.module.config, write.module.factor
    if factor == 0:
        return y
    if config.stride == 2:
        x = write(aten.avg_pool2d.default, x, [2, 2], [2, 2], [0, 0], True)
    width = math.gcd(config.inputs, config.outputs)
    if width < config.inputs:
        starts = range(0, config.inputs, width)
        first, *others = (write(aten.slice.Tensor, x, 1, start, start + width) for start in starts)
        for other in others:
            first = write(aten.add.Tensor, first, other)
        x = write(aten.mul.Tensor, first, write.number("share", width / config.inputs))
    if factor != 1:
        x = write(aten.mul.Tensor, x, write.number("factor", factor))
    if width < config.outputs:
        x = write(aten.cat.default, [x] * (config.outputs // width), 1)
    return write(aten.add.Tensor, y, x)


def _expand_mask(write: _Writer, call: fx.Node) -> fx.Node:
    (x,) = call.all_input_nodes
    config = write.module.config
    ends = (write.number("one", 1.0), write.number("zero", 0.0))

    def zeros_and_ones(comparison: Any, value: fx.Node, limit: float) -> fx.Node:
        return write(aten.where.self, write(comparison, value, limit), *ends)

    def blurred(value: fx.Node) -> fx.Node:
        height, width = write.program.facts(call).sizes[2:]
        half = [max(height // 2, 1), max(width // 2, 1)]
        small = write(aten.upsample_bilinear2d.vec, value, half, False, None)
        return write(aten.upsample_bilinear2d.vec, small, [height, width], False, None)

    if config.rule == "xor":
        both = [zeros_and_ones(aten.gt.Scalar, value, config.threshold) for value in (x, blurred(x))]
        difference = write(aten.sub.Tensor, *both)
        return zeros_and_ones(aten.gt.Scalar, write(aten.mul.Tensor, difference, difference), 0.0)
    if config.rule == "support_residual":
        x = zeros_and_ones(aten.gt.Scalar, x, 0.0)
    residual = write(aten.abs.default, write(aten.sub.Tensor, x, blurred(x)))
    return zeros_and_ones(aten.ge.Scalar, residual, config.threshold)


EXPANSIONS: dict[type[torch.nn.Module], Callable[[_Writer, fx.Node], fx.Node]] = {
    ElasticShortcut: _expand_shortcut,
    SpatialMask: _expand_mask,
}
