"""Multiply-accumulates of matrix products, and of modules of tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mattecompress import ops
from mattecompress.program import Program

assert ops
aten, matte = torch.ops.aten, torch.ops.matte
_ATTENTIONS = {aten.scaled_dot_product_attention.default, matte.attend_on_grid.default}
_MATRICES = {aten.matmul.default, aten.bmm.default, aten.mm.default}


def product_macs(program: Program, node: fx.Node) -> int:
    """Of a linear layer, a matrix product, an Einstein sum, an attention, or a module that says so; 0 of others.

    Attention among chosen tokens counts as if its limit were reached.
    """
    arguments: tuple[Any, ...] = node.args
    if node.op == "call_module":
        count = getattr(program.module(node), "macs", None)
        return int(count(math.prod(program.facts(node).sizes[:3]))) if count else 0
    if node.target is aten.linear.default or node.target in _MATRICES:
        return math.prod(program.facts(node).sizes) * program.facts(arguments[0]).sizes[-1]
    if node.target is aten.addmm.default:
        return math.prod(program.facts(node).sizes) * program.facts(arguments[1]).sizes[-1]
    if node.target in _ATTENTIONS:
        query, key, value = (program.facts(argument).sizes for argument in arguments[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if node.target is aten.einsum.default:
        equation, tensors = arguments[:2]
        return _einstein_macs(equation, [program.facts(tensor).sizes for tensor in tensors])
    return 0


def _einstein_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """The extents of all letters, and of the axes that dots stand for, which count from the right."""
    extents: dict[str, int] = {}
    words = equation.replace(" ", "").partition("->")[0].split(",")
    for word, shape in zip(words, shapes, strict=True):
        before, _, after = word.partition("...")
        dots = len(shape) - len(before) - len(after)
        axes = [*before, *(f"...{place}" for place in range(-dots, 0)), *after]
        for axis, extent in zip(axes, shape, strict=True):
            extents[axis] = max(extent, extents.get(axis, 1))
    return math.prod(extents.values())
