"""What a node does, in words that two programs can be compared by: nodes of others and names of tensors left out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from mattecompress.options import format_options
from mattecompress.program import Program
from mattecompress.text import digest, format_argument, target_text


@dataclass(frozen=True)
class Described:
    """A program's nodes that are given or computed, and what each does.

    kinds: the operation, or the class of the module that is called.
    attributes: by name, each argument that is no node, and a module's configuration.
    operands: by the name of the argument, the nodes that it reads.
    tensors: by the name of the argument, or of a module's tensor, the names of the tensors that it reads.
    """

    program: Program
    nodes: tuple[fx.Node, ...]
    kinds: Mapping[fx.Node, str]
    attributes: Mapping[fx.Node, Mapping[str, str]]
    operands: Mapping[fx.Node, Mapping[str, fx.Node]]
    tensors: Mapping[fx.Node, Mapping[str, str]]
    digests: Mapping[str, str]

    def content(self, node: fx.Node) -> dict[str, str]:
        """The digest of each tensor that a node reads."""
        return {name: self.digests[tensor] for name, tensor in self.tensors[node].items()}


def describe(program: Program) -> Described:
    """Describe every node of a program."""
    nodes = tuple(node for node in program.graph.nodes if node.op not in ("get_attr", "output"))
    state = program.state_dict()
    arguments = {node: dict(_arguments(program, node)) for node in nodes}
    read = {
        node: {name: str(value.target) for name, value in values.items() if _is_tensor(value)}
        | _module_tensors(program, node)
        for node, values in arguments.items()
    }
    return Described(
        program,
        nodes,
        kinds={node: kind_of(program, node) for node in nodes},
        attributes={
            node: {
                name: value if isinstance(value, str) else format_argument(value)
                for name, value in values.items()
                if not isinstance(value, fx.Node)
            }
            for node, values in arguments.items()
        },
        operands={
            node: {
                name: value
                for name, value in values.items()
                if isinstance(value, fx.Node) and not _is_tensor(value)
            }
            for node, values in arguments.items()
        },
        tensors=read,
        digests={name: digest(state[name]) for names in read.values() for name in names.values()},
    )


def kind_of(program: Program, node: fx.Node) -> str:
    """A node's operation, or the class of the module that it calls."""
    if node.op == "placeholder":
        return "input"
    return type(program.module(node)).__name__ if node.op == "call_module" else target_text(node)


def _arguments(program: Program, node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Every argument by name but those that say what is so anyway, each of a list of nodes for itself."""
    if node.op == "call_module":
        yield "config", format_options("", program.module(node).config)
    schema = getattr(node.target, "_schema", None)
    defaults = {argument.name: argument.default_value for argument in schema.arguments} if schema else {}
    names = [*defaults, *(f"input{number}" for number in range(len(defaults), len(node.args)))]
    for name, value in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        if isinstance(value, list | tuple) and any(isinstance(item, fx.Node) for item in value):
            yield from ((f"{name}[{place}]", item) for place, item in enumerate(value))
        elif isinstance(value, fx.Node) or defaults.get(name, ...) != value:
            yield name, value


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _module_tensors(program: Program, node: fx.Node) -> dict[str, str]:
    if node.op != "call_module":
        return {}
    return {name: f"{node.target}.{name}" for name in program.module(node).state_dict()}


def short_kind(kind: str) -> str:
    """An operation's name without its namespace, if that is `aten`, and its overload."""
    parts = kind.split(".")
    return kind if len(parts) < 3 else parts[1] if parts[0] == "aten" else ".".join(parts[:2])
