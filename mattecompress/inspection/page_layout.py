"""Where the nodes of a program are drawn: in layers along the data, within a box for each group, boxes likewise.

A layer is a topological generation; what reads nothing stands right above its first reader. Edges between groups that
point back, because two groups read each other, do not count. A stack of groups much higher than wide is cut into columns
side by side, so that the whole is about square. Lengths are in pixels at a zoom of 1.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import networkx

NODE = (176.0, 38.0)
GAP, BETWEEN, MARGIN, TITLE = 18.0, 48.0, 12.0, 22.0
"""Between boxes; between columns; between a group's edge and what is in it; for the name of a group."""

Size = tuple[float, float]
Point = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Box:
    """A rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """Boxes of nodes and of groups, by name, and a curve for each edge as the `d` of an SVG path."""

    nodes: dict[str, Box]
    groups: dict[str, Box]
    edges: dict[tuple[str, str], str]
    width: float
    height: float


def lay_out(graph: "networkx.DiGraph[str]", groups: Mapping[str, str]) -> Drawing:
    """Place the nodes of a graph, given in an order in which none reads a later one.

    groups: for each node the group that it is drawn in; empty for one that stands alone.
    """
    members: dict[tuple[str, str], list[str]] = {}
    for name in graph:
        members.setdefault(_group(groups, name), []).append(name)
    between: networkx.DiGraph[tuple[str, str]] = networkx.DiGraph()
    between.add_nodes_from(members)
    between.add_edges_from((_group(groups, a), _group(groups, b)) for a, b in graph.edges)
    inner = {}
    for group, names in members.items():
        part: networkx.DiGraph[str] = networkx.DiGraph()
        part.add_nodes_from(names)
        part.add_edges_from(graph.subgraph(names).edges)
        sizes = dict.fromkeys(names, NODE)
        inner[group] = _column(_layers(part), part, sizes)
    frames = {group: _framed(size) if group[0] else size for group, (_, size) in inner.items()}
    outer, (width, height) = _columns(between, frames)
    nodes: dict[str, Box] = {}
    drawn: dict[str, Box] = {}
    for group, (places, _) in inner.items():
        left, top = outer[group]
        if group[0]:
            drawn[group[0]] = Box(left, top, *frames[group])
            left, top = left + MARGIN, top + TITLE
        nodes |= {name: Box(left + x, top + y, *NODE) for name, (x, y) in places.items()}
    edges = {(a, b): _curve(nodes[a], nodes[b]) for a, b in graph.edges}
    return Drawing(nodes, drawn, edges, width, height)


def _group(groups: Mapping[str, str], name: str) -> tuple[str, str]:
    """A group's name, or a node's that stands alone."""
    return (groups[name], "") if groups[name] else ("", name)


def _framed(size: Size) -> Size:
    return size[0] + 2 * MARGIN, size[1] + TITLE + MARGIN


def _columns(graph: "networkx.DiGraph[Key]", sizes: Mapping[Key, Size]) -> tuple[dict[Key, Point], Size]:
    """Columns side by side, each about as high as all of them are wide; and the size of all."""
    places: dict[Key, Point] = {}
    left = height = 0.0
    for layers in _cut(_layers(graph), sizes):
        column, size = _column(layers, graph, sizes)
        places |= {key: (left + x, y) for key, (x, y) in column.items()}
        left, height = left + size[0] + BETWEEN, max(height, size[1])
    return places, (max(left - BETWEEN, 0.0), height)


def _cut(layers: list[list[Key]], sizes: Mapping[Key, Size]) -> Iterable[list[list[Key]]]:
    """Layers in groups of about the same height."""
    heights = [max(sizes[key][1] for key in layer) + GAP for layer in layers]
    widest = max((_width(layer, sizes) for layer in layers), default=0.0) + BETWEEN
    limit = math.sqrt(sum(heights) * widest)
    column: list[list[Key]] = []
    top = 0.0
    for layer, height in zip(layers, heights, strict=True):
        if column and top + height / 2 > limit:
            yield column
            column, top = [], 0.0
        column.append(layer)
        top += height
    yield column


def _width(layer: Iterable[Key], sizes: Mapping[Key, Size]) -> float:
    return sum(sizes[key][0] + GAP for key in layer) - GAP


def _column(
    layers: list[list[Key]], graph: "networkx.DiGraph[Key]", sizes: Mapping[Key, Size]
) -> tuple[dict[Key, Point], Size]:
    """Layers below one another, each in the middle and in the order of what it reads; and the size of all."""
    places: dict[Key, Point] = {}
    centres: dict[Key, float] = {}
    top = 0.0
    for unordered in layers:
        above = {
            key: [centres[each] for each in graph.predecessors(key) if each in centres] for key in unordered
        }
        means = {key: sum(found) / len(found) if found else 0.0 for key, found in above.items()}
        layer = sorted(unordered, key=means.__getitem__)
        left = -_width(layer, sizes) / 2
        for key in layer:
            places[key], centres[key] = (left, top), left + sizes[key][0] / 2
            left += sizes[key][0] + GAP
        top += max(sizes[key][1] for key in layer) + GAP
    least = min((x for x, _ in places.values()), default=0.0)
    width = max((x + sizes[key][0] for key, (x, _) in places.items()), default=0.0) - least
    return {key: (x - least, y) for key, (x, y) in places.items()}, (width, max(top - GAP, 0.0))


def _layers(graph: "networkx.DiGraph[Key]") -> list[list[Key]]:
    order = {key: place for place, key in enumerate(graph)}
    forward: networkx.DiGraph[Key] = networkx.DiGraph()
    forward.add_nodes_from(graph)
    forward.add_edges_from((a, b) for a, b in graph.edges if order[a] < order[b])
    layers: list[list[Key]] = [list(layer) for layer in networkx.topological_generations(forward)]
    depth = {key: number for number, layer in enumerate(layers) for key in layer}
    for key in layers[0] if layers else []:
        depth[key] = min((depth[reader] for reader in forward.successors(key)), default=1) - 1
    return [
        layer for number in range(len(layers)) if (layer := [key for key in order if depth[key] == number])
    ]


def _curve(source: Box, reader: Box) -> str:
    """From the middle of one's lower edge to the middle of the other's upper, bent aside the more the further."""
    x, y = source.x + source.width / 2, source.y + source.height
    to_x, to_y = reader.x + reader.width / 2, reader.y
    far = abs(to_y - y)
    aside = min(far - 4 * GAP, 600.0) / 2 if far > 4 * GAP else 0.0
    bend = max(GAP, min(far / 3, 120.0))
    return f"M{x:.0f} {y:.0f}C{x + aside:.0f} {y + bend:.0f} {to_x + aside:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
