"""Which nodes are computed where they are read instead of in a kernel of their own.

- A slice always: it only shifts indices.
- A join, a resize or an arithmetic node whose only reader is a convolution, or another such node: the convolution
  gathers its input into a small buffer anyway, and computes the node on the way.
- But an arithmetic node stays outside if it can be the epilogue of what computes its operand.
"""

import torch
from torch import fx

aten = torch.ops.aten

SLICES = {aten.slice.Tensor}
CONVOLUTIONS = {aten.conv2d.default}
JOINS = {aten.cat.default, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec}
ARITHMETIC = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
}


def absorbed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a graph that get no kernel of their own."""
    absorbed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.target in SLICES or (
            node.target in JOINS | ARITHMETIC
            and _only_reader_gathers(node, absorbed)
            and not _fits_epilogue(node)
        ):
            absorbed.add(node)
    return absorbed


def _only_reader_gathers(node: fx.Node, absorbed: set[fx.Node]) -> bool:
    readers = list(node.users)
    if len(readers) != 1:
        return False
    (reader,) = readers
    if reader.target in CONVOLUTIONS:
        return reader.args[0] is node
    return reader in absorbed and reader.target not in SLICES


def _fits_epilogue(node: fx.Node) -> bool:
    return node.target in ARITHMETIC and any(
        source.op == "call_function"
        and len(source.users) == 1
        and source.target not in SLICES | JOINS
        and source.meta["facts"].shape == node.meta["facts"].shape
        and not _gathers_frame(source)
        for source in node.all_input_nodes
    )


def _gathers_frame(node: fx.Node) -> bool:
    """Whether a node is arithmetic on inputs of the program and constants alone."""
    return node.target in ARITHMETIC and all(
        source.op in ("placeholder", "get_attr") or _gathers_frame(source) for source in node.all_input_nodes
    )
