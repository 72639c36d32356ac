"""Which convolutions of a program can become one-bit, and why the others cannot."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx

from mattecompress.analysis.operands import arguments_of
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.options import nearest
from mattecompress.pipeline import expect
from mattecompress.program import Program

conv2d = torch.ops.aten.conv2d.default


@dataclass(frozen=True)
class Exclusions:
    """Layers that stay float: by patterns of their paths, and the first and the last on a frame's way."""

    patterns: tuple[str, ...] = ()
    first: bool = True
    last: bool = True

    def check(self, program: Program) -> None:
        """Raise `PreconditionError` when a pattern matches no layer."""
        layers = [*float_convolutions(program), *program.called_modules(BinaryConv2d)]
        paths = sorted({layer_path(node) for node in layers})
        for pattern in self.patterns:
            matched = any(fnmatchcase(path, pattern) for path in paths)
            expect(matched, f"exclude pattern '{pattern}' matches no convolution{nearest(pattern, paths)}")

    def float_reasons(self, program: Program) -> dict[fx.Node, str | None]:
        """Every float convolution, with the reason why it stays so, or None."""
        ends = _ends(program)
        reasons = {node: self._own_reason(node, ends.get(node)) for node in float_convolutions(program)}
        sharing: dict[fx.Node, list[fx.Node]] = {}
        for node in reasons:
            sharing.setdefault(weight_of(node), []).append(node)
        for nodes in sharing.values():
            own = [f"shares its weight with %{node.name}, {reasons[node]}" for node in nodes if reasons[node]]
            if len({str(geometry_of(node)) for node in nodes}) > 1:
                own.append("shares its weight with a convolution of another geometry")
            for node in nodes:
                reasons[node] = reasons[node] or next(iter(own), None)
        return reasons

    def layers(self, program: Program) -> list[fx.Node]:
        """Convolutions that are one-bit already or have no reason to stay float, in order."""
        reasons = self.float_reasons(program)
        return [
            node
            for node in program.operations()
            if (is_binary(program, node) and not self._names(node)) or reasons.get(node, "no layer") is None
        ]

    def _names(self, node: fx.Node) -> bool:
        return any(fnmatchcase(layer_path(node), pattern) for pattern in self.patterns)

    def _own_reason(self, node: fx.Node, end: str | None) -> str | None:
        if any(
            reader and reader.op != "get_attr" for reader in (weight_of(node), arguments_of(node)["bias"])
        ):
            return "its weight or bias is computed"
        if self._names(node):
            return "excluded"
        return end if {"first": self.first, "last": self.last, None: False}[end] else None


def float_convolutions(program: Program) -> Iterator[fx.Node]:
    """Calls of a float convolution, in order."""
    return (node for node in program.operations() if node.target is conv2d)


def weight_of(node: fx.Node) -> fx.Node:
    """The node of its weight."""
    weight = arguments_of(node)["weight"]
    assert isinstance(weight, fx.Node)
    return weight


def geometry_of(node: fx.Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups."""
    arguments = arguments_of(node)
    return tuple(arguments[key] for key in ("bias", "stride", "padding", "dilation", "groups"))


def layer_path(node: fx.Node) -> str:
    """The layer's path: where its weight lives, or its node's name where the weight lives at the top."""
    if node.op == "call_module":
        return str(node.target)
    return str(weight_of(node).target).rpartition(".")[0] or node.name


def is_binary(program: Program, node: fx.Node) -> bool:
    """Whether a node calls a trainable one-bit convolution."""
    return node.op == "call_module" and isinstance(program.module(node), BinaryConv2d)


def is_shifted(program: Program, node: fx.Node) -> bool:
    """Whether what a node reads first is a sum with a learnable bias for each channel, (1,C,1,1), made for layers."""
    (x, *_) = node.all_input_nodes
    if x.target is not torch.ops.aten.add.Tensor:
        return False
    bias = x.args[1]
    if not isinstance(bias, fx.Node) or bias.op != "get_attr":
        return False
    alone = all(user is node or user.target is conv2d or is_binary(program, user) for user in x.users)
    return alone and program.facts(bias).shape == (1, program.facts(x).shape[1], 1, 1)


def _ends(program: Program) -> dict[fx.Node, str]:
    """The convolutions that are "first" or "last" on the way of the frame through the program."""
    states = {state.input for state in program.states}
    outputs = [
        node for name, node in program.outputs.items() if name not in {s.output for s in program.states}
    ]
    order = [node for node in program.graph.nodes if node.op not in ("get_attr", "output")]
    order = [node for node in order if program.facts(node).dtype is not None]
    seen = {node for node in program.inputs if node.target not in states}
    behind = set[fx.Node]()
    for node in order:
        seen.update([node] if _any_in(node.all_input_nodes, seen) else [])
        behind.update([node] if _passes_layer(program, node.all_input_nodes, behind) else [])
    leading, before = set(outputs), set[fx.Node]()
    for node in reversed(order):
        users = [user for user in node.users if user in leading]
        leading.update([node] if users else [])
        before.update([node] if _passes_layer(program, users, before) else [])
    firsts = {node: "first" for node in float_convolutions(program) if node in seen - behind}
    return {node: "last" for node in float_convolutions(program) if node in leading - before} | firsts


def _any_in(nodes: Iterable[fx.Node], found: set[fx.Node]) -> bool:
    return any(node in found for node in nodes)


def _passes_layer(program: Program, nodes: Iterable[fx.Node], found: set[fx.Node]) -> bool:
    """Whether one of the neighbours is a convolution, or has one beyond it."""
    return any(node in found or node.target is conv2d or is_binary(program, node) for node in nodes)
