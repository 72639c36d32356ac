"""Floats of which every rounding is stated.

In a program that rounds to codes or signs, the last place of a float decides which code, so that only a stated rounding
gives the same answer on every backend, before and after lowering. PyTorch's own kernels round as they please.
"""

from typing import Any

import torch
from torch import Tensor, fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program

aten, matte = torch.ops.aten, torch.ops.matte

OPERATIONS = (
    matte.quantize.default,
    matte.pack_signs.default,
    matte.pack_units.default,
    matte.pack_plane.default,
)
FUNCTIONS: dict[Any, Any] = {
    aten.sigmoid.default: matte.sigmoid.default,
    aten.tanh.default: matte.tanh.default,
    aten.adaptive_avg_pool2d.default: matte.plane_mean.default,
    aten.mean.dim: matte.plane_mean.default,
    aten.upsample_bilinear2d.vec: matte.resize_bilinear.default,
}
"""Functions, and those that compute the same and say how they round."""


def rounds(program: Program) -> bool:
    """Whether any operation or module of a program rounds to codes or signs."""
    modules = program.called_modules(BinaryConv2d) or program.called_modules(FakeQuantize)
    return bool(modules) or any(program.find(target) for target in OPERATIONS)


def stated(program: Program) -> Program:
    """A copy of a program that rounds, its functions and batch norms with stated roundings; others as they are."""
    if not rounds(program):
        return program
    copy = program.clone()
    state_functions(copy)
    state_batch_norms(copy)
    copy.graph_module.recompile()
    return copy


def unstated_functions(program: Program) -> list[fx.Node]:
    """Calls of functions that have a stated form."""
    return [
        node for node in program.operations() if node.target in FUNCTIONS and _is_stated_for(program, node)
    ]


def state_functions(program: Program) -> int:
    """Replace functions of floats, in place, and say how many."""
    calls = unstated_functions(program)
    for node in calls:
        with program.graph.inserting_before(node):
            replacement = program.graph.call_function(FUNCTIONS[node.target], _arguments(node))
        program.replace(node, replacement)
    return len(calls)


def state_batch_norms(program: Program) -> int:
    """Write inference batch norms of float32 or float64 as a product and a sum, in place, and say how many."""
    calls = program.called_modules(BatchNorm2d)
    for call in calls:
        norm = program.module(call, BatchNorm2d)
        scale, shift = norm.scale_and_shift()
        with program.graph.inserting_before(call):
            scaled = _with_constant(program, call, aten.mul.Tensor, call.args[0], "scale", scale)
            total = _with_constant(program, call, aten.add.Tensor, scaled, "shift", shift)
        call.replace_all_uses_with(total)
        program.graph.erase_node(call)
    return len(calls)


def _with_constant(
    program: Program, call: fx.Node, target: Any, value: Any, name: str, constant: Tensor
) -> fx.Node:
    """An operation on a value and a constant of each channel, in the place of a call."""
    facts = program.facts(call)
    shaped = constant.detach()[:, None, None].to(facts.dtype)
    held = program.constant(program.free_path(f"{call.target}.{name}"), shaped)
    node = program.graph.call_function(target, (value, held))
    node.meta["facts"] = facts
    return node


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
