"""Units of a program: its regions, and each node outside of all regions, in an order that data follows."""

from collections.abc import Callable
from dataclasses import dataclass

import networkx
from torch import Tensor, fx, nn

from mattecompress.analysis.regions import region_graph, region_label
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program

Replace = Callable[[fx.Node], nn.Module | None]


@dataclass(frozen=True)
class Unit:
    """Nodes that are computed together.

    inputs: values from outside of the unit, tensors held by the program left out.
    outputs: nodes that something outside reads, the program's outputs among them.
    """

    label: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    def quantizers(self, program: Program, of_weights: bool) -> list[fx.Node]:
        """The unit's calls of fake quantizers of weights, or of computed tensors."""
        calls = set(program.called_modules(FakeQuantize)) & set(self.nodes)
        return [node for node in self.nodes if node in calls and reads_weight(node) is of_weights]


def cut_units(program: Program) -> list[Unit]:
    """Every operation of the program in exactly one unit, units in topological order."""
    members: dict[str, list[fx.Node]] = {}
    for node in program.operations():
        members.setdefault(region_label(program, node), []).append(node)
    place = {label: position for position, label in enumerate(members)}
    order = networkx.lexicographical_topological_sort(region_graph(program), key=place.__getitem__)
    return [_unit(label, members[label]) for label in order]


def whole_unit(program: Program) -> Unit:
    """The program as one unit, with only its own outputs."""
    nodes = tuple(program.operations())
    computed = set(nodes)
    outputs = tuple(dict.fromkeys(node for node in program.outputs.values() if node in computed))
    return Unit(program.name, nodes, program.inputs, outputs)


def _unit(label: str, nodes: list[fx.Node]) -> Unit:
    inside = set(nodes)
    read = [source for node in nodes for source in node.all_input_nodes if source.op != "get_attr"]
    inputs = tuple(dict.fromkeys(source for source in read if source not in inside))
    outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))
    return Unit(label, tuple(nodes), inputs, outputs)


def reads_weight(call: fx.Node) -> bool:
    """Whether a fake quantizer's call reads a tensor that the program holds."""
    return call.all_input_nodes[0].op == "get_attr"


def unit_module(program: Program, unit: Unit, replace: Replace = lambda node: None) -> fx.GraphModule:
    """A unit as a module from its inputs to a tuple of its outputs; it shares the program's tensors and modules.

    replace: the module that a node of a module call shall call instead; None keeps it.
    """
    graph = fx.Graph()
    held: dict[str, Tensor | nn.Module] = {}
    values = {node: graph.placeholder(node.name) for node in unit.inputs}
    for node in unit.nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in values:
                held[str(source.target)] = program.tensor(source)
                values[source] = graph.get_attr(str(source.target))
        values[node] = graph.node_copy(node, values.__getitem__)
        if node.op == "call_module":
            held[str(node.target)] = replace(node) or program.module(node)
    graph.output(tuple(values[node] for node in unit.outputs))
    return fx.GraphModule(held, graph).eval()
