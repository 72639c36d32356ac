import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.inspection.page_layout import Box, lay_out

PLAIN: "networkx.DiGraph[str]" = networkx.DiGraph()
PLAIN.add_nodes_from(["src", "state", "a", "b", "c", "d"])
PLAIN.add_edges_from([("src", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("state", "d")])
GROUPS = {"src": "", "state": "", "a": "one", "b": "one", "c": "one", "d": "two"}


def overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def inside(box: Box, frame: Box) -> bool:
    return (
        frame.x <= box.x
        and frame.y <= box.y
        and box.x + box.width <= frame.x + frame.width
        and box.y + box.height <= frame.y + frame.height
    )


def test_layers_follow_the_data() -> None:
    drawing = lay_out(PLAIN, GROUPS)
    assert all(drawing.nodes[a].y < drawing.nodes[b].y for a, b in PLAIN.edges)
    assert drawing.nodes["b"].y == drawing.nodes["c"].y
    assert drawing.groups.keys() == {"one", "two"}
    assert drawing.edges.keys() == set(PLAIN.edges)


def test_an_input_stands_right_above_its_first_reader() -> None:
    drawing = lay_out(PLAIN, dict.fromkeys(PLAIN, ""))
    assert drawing.nodes["state"].y == drawing.nodes["b"].y
    assert drawing.nodes["src"].y == 0


def test_a_deep_network_is_about_square() -> None:
    deep: networkx.DiGraph[str] = networkx.path_graph(
        [f"n{number}" for number in range(600)], networkx.DiGraph
    )
    drawing = lay_out(deep, {name: f"block.{number // 30}" for number, name in enumerate(deep)})
    assert 0.5 < drawing.width / drawing.height < 2
    lefts = [box.x for box in drawing.groups.values()]
    assert lefts == sorted(lefts) and len(set(lefts)) == 10


def test_nothing_to_draw() -> None:
    drawing = lay_out(networkx.DiGraph(), {})
    assert (drawing.nodes, drawing.edges, drawing.width, drawing.height) == ({}, {}, 0.0, 0.0)


@pytest.mark.parametrize("groups", [{"a": "x", "b": "y", "c": "x"}, {"a": "", "b": "x", "c": ""}])
def test_groups_that_read_each_other(groups: dict[str, str]) -> None:
    drawing = lay_out(networkx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")]), groups)
    assert drawing.nodes.keys() == groups.keys()


@st.composite
def graphs(draw: st.DrawFn) -> tuple["networkx.DiGraph[str]", dict[str, str]]:
    count = draw(st.integers(1, 14))
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(f"n{number}" for number in range(count))
    for number in range(1, count):
        for source in draw(st.sets(st.integers(0, number - 1), max_size=3)):
            graph.add_edge(f"n{source}", f"n{number}")
    return graph, {name: draw(st.sampled_from(["", "x", "y", "z"])) for name in graph}


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_boxes_lie_apart_and_within_their_groups(
    drawn: tuple["networkx.DiGraph[str]", dict[str, str]],
) -> None:
    graph, groups = drawn
    drawing = lay_out(graph, groups)
    assert drawing.nodes.keys() == set(graph)
    boxes = [*drawing.nodes.values()]
    assert not any(overlap(a, b) for place, a in enumerate(boxes) for b in boxes[:place])
    frames = [*drawing.groups.values()]
    assert not any(overlap(a, b) for place, a in enumerate(frames) for b in frames[:place])
    assert all(inside(drawing.nodes[name], drawing.groups[group]) for name, group in groups.items() if group)
    whole = Box(0, 0, drawing.width + 1e-6, drawing.height + 1e-6)
    assert all(inside(box, whole) for box in boxes + frames)
