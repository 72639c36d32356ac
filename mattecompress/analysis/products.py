"""Multiply-accumulates of matrix products, and of modules of tokens."""

import math
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
    if node.target in _ATTENTIONS:
        query, key, value = (program.facts(argument).sizes for argument in arguments[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if node.target is aten.einsum.default:
        equation, tensors = arguments[:2]
        letters = equation.partition("->")[0].split(",")
        sizes = [program.facts(tensor).sizes for tensor in tensors]
        named = [
            pair for word, shape in zip(letters, sizes, strict=True) for pair in zip(word, shape, strict=True)
        ]
        return math.prod(dict(named).values())
    return 0
