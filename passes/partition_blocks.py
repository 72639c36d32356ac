"""Blocks are the units that block-wise passes walk: PTQ4VM section 7.1 names RVM's; other networks are cut where one
value crosses."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import networkx
import torch
from torch import fx

from mattecompress.analysis.regions import region_graph, region_label
from mattecompress.analysis.scopes import lies_in
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program, numbered

RVM_BLOCKS = ("InvertedResidual", "Bottleneck", "LRASPP", "BottleneckBlock", "UpsamplingBlock", "OutputBlock")
BIVM_BLOCKS = (
    "SubBlock",
    "GroupShortcuts",
    "BinaryLRASPP",
    "CoarseBlock",
    "SparseUpsamplingBlock",
    "SparseOutputBlock",
)
ATTENTION_BLOCKS = ("VitDetLayer", "RoutedLayer", "Block")
HEADS = ("Projection",)
_ACTIVATIONS = {torch.ops.aten.relu.default, torch.ops.aten.hardswish.default}


@dataclass(frozen=True)
class PartitionBlocks(Pass):
    """Give every layer a region; afterwards regions are convex and stand in the order of computation."""

    kinds: tuple[str, ...] = (*RVM_BLOCKS, *BIVM_BLOCKS, *ATTENTION_BLOCKS, *HEADS)
    name: ClassVar[str] = "partition-blocks"

    def ensures(self, program: Program) -> None:
        """Every layer has a region, and no path leaves a region and comes back."""
        expect(program.has_regions, "no region was found")
        expect(networkx.is_directed_acyclic_graph(region_graph(program)), "a region is not convex")

    def apply(self, program: Program, context: Context) -> str | None:
        """Regions from the source's modules where it has such, else from narrow points; cut to be convex."""
        before = [program.facts(node).region for node in program.operations()]
        blocks = {path for path, kind in program.scopes.items() if kind in self.kinds}
        regions = _from_modules(program, blocks) if blocks else _from_narrow_points(program)
        for node, region in regions:
            node.meta["facts"] = program.facts(node).but(region=region)
        for node, region in list(_cut_into_runs(program)):
            node.meta["facts"] = program.facts(node).but(region=region)
        after = [program.facts(node).region for node in program.operations()]
        count = len({region for region in after if region})
        return f"{count} regions" if before != after else None


def _from_modules(program: Program, blocks: set[str]) -> Iterator[tuple[fx.Node, str | None]]:
    """The outermost named block that a node's scope lies in; a layer outside of all is a region of its own."""
    for node in program.operations():
        scope = program.facts(node).scope
        within = [block for block in blocks if lies_in(scope, block)]
        if within:
            yield node, min(within, key=len)
        else:
            alone = _is_layer(program, node) or _follows_layer(node)
            yield node, (scope.rpartition(".")[0] or scope or node.name) if alone else None


def _cut_into_runs(program: Program) -> Iterator[tuple[fx.Node, str]]:
    """Where data leaves regions and comes back, their parts that are computed without a break: decoder, decoder_1."""
    graph = region_graph(program)
    names = set(graph)
    for knot in networkx.strongly_connected_components(graph):
        members = [node for node in program.operations() if region_label(program, node) in knot]
        met = set[str]()
        for label, run in itertools.groupby(members, lambda node: region_label(program, node)):
            name = next(each for each in numbered(label) if each not in names) if label in met else label
            met.add(label)
            names.add(name)
            yield from ((node, name) for node in run if program.facts(node).region)


def _from_narrow_points(program: Program) -> Iterator[tuple[fx.Node, str | None]]:
    """Cut behind every node that is the only computed value alive, once its region holds a layer."""
    position = {node: place for place, node in enumerate(program.graph.nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in position}
    number, layers, alive = 0, 0, set[fx.Node]()
    for node in program.operations():
        yield node, f"block.{number}"
        layers += _is_layer(program, node)
        alive = {value for value in alive if last_use[value] > position[node]} | {node}
        if len(alive) == 1 and layers:
            number, layers = number + 1, 0


def _is_layer(program: Program, node: fx.Node) -> bool:
    """A convolution, or a module that is no batch norm."""
    if node.op == "call_module":
        return not isinstance(program.module(node), BatchNorm2d)
    return node.target is torch.ops.aten.conv2d.default


def _follows_layer(node: fx.Node) -> bool:
    """A batch norm, or an activation behind something computed."""
    if node.op == "call_module":
        return True
    source = node.args[0] if node.args else None
    return node.target in _ACTIVATIONS and isinstance(source, fx.Node) and source.op != "placeholder"
