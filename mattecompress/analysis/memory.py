"""Bytes of activations that are alive while each node computes.

A value lives from the node that makes it to the last that reads it, an input from the beginning, an output to the end.
A view takes no memory and keeps what it looks at alive. What is computed from constants alone is counted as a constant:
not at all. No memory is shared otherwise: this is what a program needs at least if every node has a buffer of its own,
not the plan of a compiled one, whose fused kernels keep less.
"""

import math
import operator
from collections.abc import Mapping

import torch
from torch import fx

from mattecompress.program import Program


def live_bytes(program: Program) -> dict[str, int]:
    """For each operation of a program of fixed size, by name, the bytes alive while it computes, its result among them."""
    nodes = list(program.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    roots = _buffers(program)
    ends: dict[fx.Node, int] = {}
    for node, root in roots.items():
        last = max((place[user] for user in node.users), default=place[node])
        ends[root] = max(ends.get(root, 0), last)
    changes = [0] * (len(nodes) + 1)
    for root, end in ends.items():
        size = _size(program, root)
        changes[0 if root.op == "placeholder" else place[root]] += size
        changes[end + 1] -= size
    live, alive = 0, {}
    for index, node in enumerate(nodes):
        live += changes[index]
        alive[node] = live
    return {node.name: alive[node] for node in program.operations()}


def _buffers(program: Program) -> Mapping[fx.Node, fx.Node]:
    """For each activation the node whose memory it lies in."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        read = [source for source in node.all_input_nodes if source in roots]
        if node.op == "placeholder" or (node.op in ("call_function", "call_module") and read):
            roots[node] = roots[read[0]] if is_view(node) else node
    return roots


def is_view(node: fx.Node) -> bool:
    """Whether an operation's result shares the memory of its first operand, or is one of several that do."""
    if node.target is operator.getitem:
        return is_view(node.all_input_nodes[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _size(program: Program, node: fx.Node) -> int:
    facts = program.facts(node)
    return math.prod(facts.sizes) * facts.dtype.itemsize if facts.dtype else 0
