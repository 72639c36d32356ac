"""Which nodes are computed where they are read instead of in a kernel of their own.

Inside convolutions:

- A slice always: it only shifts indices.
- A join, a resize or an arithmetic node whose only reader is a convolution, or another such node: the convolution
  gathers its input into a small buffer anyway, and computes the node on the way.
- But an arithmetic node stays outside if it can be the epilogue of what computes its operand.

Inside packings: a join that several of them read, with other thresholds each, and nobody else. One kernel computes it
pixel by pixel for all of them. Bits are few where floats are many: the join is not written down.

In the frame, the last pass over whole images, which writes the program's outputs plane by plane: elementwise nodes,
slices, joins, resizes and means over few channels that only outputs or other such nodes read. What a resize reads is
outside again, since it would be computed once for every pixel that it is spread over.
"""

from dataclasses import dataclass

import torch
from torch import fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators

aten, matte = torch.ops.aten, torch.ops.matte

SLICES = {aten.slice.Tensor}
CONVOLUTIONS = {aten.conv2d.default}
PACKINGS = {matte.pack_signs.default, matte.pack_units.default}
RESIZES = {aten.upsample_bilinear2d.vec, matte.resize_bilinear.default}
JOINS = {aten.cat.default} | RESIZES
ARITHMETIC = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
}
FRAME = ARITHMETIC | JOINS | SLICES | {aten.clamp.default, aten.mean.dim}
FEW_CHANNELS = 4


@dataclass(frozen=True)
class Absorption:
    """Nodes without kernels: those that convolutions gather, and those of the frame."""

    gathered: frozenset[fx.Node]
    frame: frozenset[fx.Node]

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.gathered or node in self.frame


def absorb(graph: fx.Graph) -> Absorption:
    """The nodes of a graph that get no kernel of their own."""
    frame: set[fx.Node] = set()
    gathered: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if _belongs_to_frame(node, frame):
            frame.add(node)
        elif node.target in SLICES or (
            node.target in JOINS | ARITHMETIC
            and _only_reader_gathers(node, gathered)
            and not _fits_epilogue(node)
        ):
            gathered.add(node)
    return Absorption(frozenset(gathered), frozenset(frame))


def _belongs_to_frame(node: fx.Node, frame: set[fx.Node]) -> bool:
    shape = node.meta["facts"].shape if node.op == "call_function" else ()
    if node.target not in FRAME or len(shape) != 4 or _fits_epilogue(node):
        return False
    if node.target is aten.mean.dim and not _is_mean_of_few_channels(node):
        return False
    readers = list(node.users)
    alone = len(readers) == 1 or all(reader.target in SLICES for reader in readers)
    return alone and all(
        reader.op == "output" or (reader in frame and reader.target not in RESIZES) for reader in readers
    )


def _is_mean_of_few_channels(node: fx.Node) -> bool:
    source, axes = node.args[:2]
    return axes in ([1], [-3]) and source.meta["facts"].shape[1] <= FEW_CHANNELS  # type: ignore[union-attr]


def _only_reader_gathers(node: fx.Node, gathered: set[fx.Node]) -> bool:
    readers = list(node.users)
    if node.target in JOINS and len(readers) > 1:
        return all(reader.target in PACKINGS for reader in readers)
    if len(readers) != 1:
        return False
    (reader,) = readers
    if reader.target in CONVOLUTIONS:
        return reader.args[0] is node
    return reader in gathered and reader.target not in SLICES


def _fits_epilogue(node: fx.Node) -> bool:
    return node.target in ARITHMETIC | {aten.clamp.default} and any(
        source.op == "call_function"
        and len(source.users) == 1
        and source.target not in SLICES | JOINS
        and source.meta["facts"].shape == node.meta["facts"].shape
        and not _is_spread(source)
        for source in node.all_input_nodes
    )


def _is_spread(node: fx.Node) -> bool:
    """Whether a node is arithmetic on inputs, constants, joins, slices and resizes alone: no kernel precedes it."""
    return node.target in ARITHMETIC | {aten.clamp.default} and all(
        source.op in ("placeholder", "get_attr") or source.target in SLICES | JOINS or _is_spread(source)
        for source in node.all_input_nodes
    )
