"""y = scale_o * (B_w(w) (*) B_a(x)) + bias_o

replaces y = w (*) x + bias: the float weight becomes the latent weight under its own name, and a batch norm behind
the convolution stays. `mattecompress.modules.binary` has the equations of each method. The first and the last
convolution stay float as in BiVM, whose Table II also counts the squeeze-and-excitation convolutions as one-bit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from mattecompress.facts import Precision
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig, Method
from mattecompress.options import nearest
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import AbsentParameter, Program, namespace

conv2d = torch.ops.aten.conv2d.default
_CONVOLUTIONS = (conv2d, torch.ops.aten.conv2d.padding)
ONE_BIT = Precision(1, 1)
LISTED = 6


@dataclass(frozen=True)
class Binarize(Pass):
    """Make float convolutions one-bit and trainable; afterwards those left in float have a reason.

    method: bnn, dorefa, recu, react or bimatting.
    exclude: patterns of layer paths that stay float, such as `project_mat.*`.
    exclude_first: layers that read a frame through no other convolution stay float.
    exclude_last: layers with no other convolution between them and an output, states aside, stay float.
    border: what padded taps count: 0, or 1 for +1.
    absent: patterns of layers that count as one-bit where the capture left them out, for the size of the whole
        model; one that matches nothing is no error, since a model may lack the layer.
    """

    method: Method
    exclude: tuple[str, ...] = ()
    exclude_first: bool = True
    exclude_last: bool = True
    border: Literal[0, 1] = 0
    absent: tuple[str, ...] = ()
    name: ClassVar[str] = "binarize"

    def requires(self, program: Program) -> None:
        """Nothing is lowered yet, every pattern matches, and something is left to binarize or was before."""
        lowered = [node.name for node in program.operations() if namespace(node) == "matte"]
        expect(not lowered, f"%{next(iter(lowered), '')} is lowered already: binarize before lowering")
        paths = sorted({_path(node) for node in _convolutions(program)})
        for pattern in self.exclude:
            matched = any(fnmatchcase(path, pattern) for path in paths)
            expect(matched, f"exclude pattern '{pattern}' matches no convolution{nearest(pattern, paths)}")
        reasons = self._float_reasons(program)
        expect(
            None in reasons.values() or program.called_modules(BinaryConv2d),
            f"no float convolution can become one-bit: {_list_floats(reasons) or 'the program has none'}; "
            "binarize the program as it was captured",
        )

    def ensures(self, program: Program) -> None:
        """Every float convolution has a reason."""
        left = [node.name for node, reason in self._float_reasons(program).items() if reason is None]
        expect(not left, f"float convolutions survived: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """One module for each weight; convolutions that share a weight share the module."""
        reasons = self._float_reasons(program)
        chosen = [node for node, reason in reasons.items() if reason is None]
        paths: dict[fx.Node, str] = {}
        for node in chosen:
            weight = _weight(node)
            if weight not in paths:
                paths[weight] = _module_path(program, node)
                program.add_module(paths[weight], self._module(program, node))
            _call_module(program, node, paths[weight])
        if not chosen:
            return None
        absent = chain.from_iterable(map(self._count_absent, program.source.absent))
        program.source = replace(program.source, absent=tuple(absent))
        floats = _list_floats(reasons)
        return f"{len(chosen)} of {len(reasons)} convolutions in one bit{floats and f'; float: {floats}'}"

    def _float_reasons(self, program: Program) -> dict[fx.Node, str | None]:
        """Every float convolution, with the reason why it stays so, or None."""
        ends = _ends(program)
        reasons = {node: self._own_reason(node, ends.get(node)) for node in _convolutions(program)}
        sharing: dict[fx.Node, list[fx.Node]] = {}
        for node in reasons:
            sharing.setdefault(_weight(node), []).append(node)
        for nodes in sharing.values():
            own = [f"shares its weight with %{node.name}, {reasons[node]}" for node in nodes if reasons[node]]
            if len({str(_geometry(node)) for node in nodes}) > 1:
                own.append("shares its weight with a convolution of another geometry")
            for node in nodes:
                reasons[node] = reasons[node] or next(iter(own), None)
        return reasons

    def _own_reason(self, node: fx.Node, end: str | None) -> str | None:
        if node.target is not conv2d:
            return "its padding is given by name"
        if any(reader and reader.op != "get_attr" for reader in (_weight(node), _arguments(node)["bias"])):
            return "its weight or bias is computed"
        if any(fnmatchcase(_path(node), pattern) for pattern in self.exclude):
            return "excluded"
        return end if {"first": self.exclude_first, "last": self.exclude_last, None: False}[end] else None

    def _count_absent(self, part: AbsentParameter) -> list[AbsentParameter]:
        """A weight that the capture left out, in one bit, and what its layer would learn beside it."""
        path, _, leaf = part.name.rpartition(".")
        counted = leaf == "weight" and any(fnmatchcase(path, pattern) for pattern in self.absent)
        if not counted or len(part.shape) != 4:
            return [part]
        outputs, inputs = part.shape[:2]
        binary = replace(part, bits=ONE_BIT.weight_bits)
        match self.method:
            case "react" | "bimatting":
                return [binary, AbsentParameter(f"{path}.activation_bias", (inputs,))]
            case "recu":
                return [binary, AbsentParameter(f"{path}.scale", (outputs, 1, 1))]
        return [binary]

    def _module(self, program: Program, node: fx.Node) -> BinaryConv2d:
        weight = program.tensor(_weight(node))
        bias, stride, padding, dilation, groups = _geometry(node)
        config = BinaryConvConfig(
            inputs=weight.shape[1] * groups,
            outputs=weight.shape[0],
            kernel=(weight.shape[2], weight.shape[3]),
            stride=_pair(stride),
            padding=_pair(padding),
            dilation=_pair(dilation),
            groups=groups,
            bias=bias is not None,
            method=self.method,
            border=self.border,
        )
        module = BinaryConv2d.from_float(config, weight, None if bias is None else program.tensor(bias))
        return module.train(program.graph_module.training)


def _convolutions(program: Program) -> Iterator[fx.Node]:
    return (node for node in program.operations() if node.target in _CONVOLUTIONS)


def _weight(node: fx.Node) -> fx.Node:
    weight = _arguments(node)["weight"]
    assert isinstance(weight, fx.Node)
    return weight


def _geometry(node: fx.Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups."""
    arguments = _arguments(node)
    return tuple(arguments[key] for key in ("bias", "stride", "padding", "dilation", "groups"))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an operator call by name, defaults filled in."""
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    values = {parameter.name: parameter.default_value for parameter in parameters}
    given = {parameter.name: value for parameter, value in zip(parameters, node.args, strict=False)}
    return {**values, **given, **node.kwargs}


def _pair(value: Any) -> tuple[int, int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return int(sizes[0]), int(sizes[-1])


def _path(node: fx.Node) -> str:
    """The layer's path: where its weight lives, or its node's name where the weight lives at the top."""
    return str(_weight(node).target).rpartition(".")[0] or node.name


def _module_path(program: Program, node: fx.Node) -> str:
    """The layer's path if nothing else lives there; else one beside the weight."""
    weight = str(_weight(node).target)
    owner, _, leaf = weight.rpartition(".")
    beside = [name for name in program.state_dict() if name.startswith(f"{owner}.")]
    alone = owner and leaf == "weight" and set(beside) <= {weight, f"{owner}.bias"}
    return owner if alone else f"{weight}_conv"


def _call_module(program: Program, node: fx.Node, path: str) -> None:
    with program.graph.inserting_after(node):
        call = program.graph.call_module(path, (node.args[0],))
    call.meta["facts"] = program.facts(node).but(precision=ONE_BIT)
    program.replace(node, call)


def _list_floats(reasons: dict[fx.Node, str | None]) -> str:
    floats = [f"{_path(node)} ({reason})" for node, reason in reasons.items() if reason]
    more = f" and {len(floats) - LISTED} more" if len(floats) > LISTED else ""
    return ", ".join(floats[:LISTED]) + more


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
    firsts = {node: "first" for node in _convolutions(program) if node in seen - behind}
    return {node: "last" for node in _convolutions(program) if node in leading - before} | firsts


def _any_in(nodes: Iterable[fx.Node], found: set[fx.Node]) -> bool:
    return any(node in found for node in nodes)


def _passes_layer(program: Program, nodes: Iterable[fx.Node], found: set[fx.Node]) -> bool:
    """Whether one of the neighbours is a convolution, or has one beyond it."""
    return any(node in found or node.target in _CONVOLUTIONS or _is_binary(program, node) for node in nodes)


def _is_binary(program: Program, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(program.module(node), BinaryConv2d)
