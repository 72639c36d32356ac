"""Copying the graph of one program, or what a module computes, into another program."""

from collections.abc import Mapping

from torch import fx, nn

from mattecompress.capturing.tracing import capture
from mattecompress.program import Program
from mattecompress.signature import Signature


def graft(
    program: Program, donor: Program, inputs: Mapping[str, fx.Node], path: str, before: fx.Node
) -> dict[str, fx.Node]:
    """Copy the donor's operations in front of a node of the program; returns what its outputs became, by name.

    inputs: what stands for each of the donor's inputs.
    path: where the donor's tensors, modules and scopes go, in place of what stands there by the same names.
    """
    copies = {node: inputs[str(node.target)] for node in donor.inputs}
    for node in donor.graph.nodes:
        if node.op == "get_attr":
            copies[node] = program.constant(f"{path}.{node.target}", donor.tensor(node), replaces=True)
        elif node.op in ("call_function", "call_module"):
            with program.graph.inserting_before(before):
                copies[node] = program.graph.node_copy(node, copies.__getitem__)
            if node.op == "call_module":
                copies[node].target = f"{path}.{node.target}"
                program.add_module(f"{path}.{node.target}", donor.module(node))
            facts = donor.facts(node)
            scope = f"{path}.{facts.scope}" if facts.scope else path
            copies[node].meta = {"facts": facts.but(scope=scope, region=None, made=None)}
    program.scopes |= {f"{path}.{scope}": kind for scope, kind in donor.scopes.items()}
    return {name: copies[node] for name, node in donor.outputs.items()}


def graft_module(
    program: Program, module: nn.Module, inputs: Mapping[str, fx.Node], path: str, before: fx.Node
) -> fx.Node:
    """Write what a module computes of some nodes as operations in front of another; returns the result.

    inputs: nodes by the names of the module's parameters, in order; their shapes need not be fixed.
    path: where tensors of the module go, and the scope of its operations.

    Raises:
        CaptureError, NormalizationError: the module cannot be captured.
    """
    shapes = tuple((name, program.facts(node).shape) for name, node in inputs.items())
    donor = capture(module, Signature(shapes, ("result",)), path)
    return graft(program, donor, inputs, path, before)["result"]
