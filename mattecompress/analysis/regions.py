"""The blocks of a program and how they follow one another."""

import networkx
from torch import fx

from mattecompress.program import Program


def region_graph(program: Program) -> "networkx.DiGraph[str]":
    """A graph of regions, edges along the data; nodes outside of every region stand for themselves."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for node in program.operations():
        label = region_label(program, node)
        graph.add_node(label)
        for source in node.all_input_nodes:
            if source.op not in ("placeholder", "get_attr") and region_label(program, source) != label:
                graph.add_edge(region_label(program, source), label)
    return graph


def region_label(program: Program, node: fx.Node) -> str:
    """The node's region, or its own name behind `%`."""
    return program.facts(node).region or f"%{node.name}"


def regions_in_order(program: Program) -> dict[str, list[fx.Node]]:
    """The nodes of each region, regions by their first node; nodes without a region are left out."""
    regions: dict[str, list[fx.Node]] = {}
    for node in program.operations():
        region = program.facts(node).region
        if region:
            regions.setdefault(region, []).append(node)
    return regions
