"""Nodes of several versions in rows, those that stand for one another side by side, and the regions that hold the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import networkx
from torch import fx

from mattecompress.inspection.difference import Difference
from mattecompress.inspection.exports import values
from mattecompress.program import Program

LEAST_PARTS, MOST_ROWS = 3, 150
"""Parts of a module's path that stand for a region where there is none; and the rows that may share them."""
SUMS = ("macs", "binary_macs", "weight_bytes", "activation_bytes", "time_ms")

Member = tuple[int, str]
"""The number of a version and the name of a node."""


@dataclass(frozen=True)
class Row:
    """Nodes that stand for one another: for each version their names, none where there is no counterpart.

    path: the region, in the latest version that knows one; else the beginning of the scope, as long as it takes for few
        rows to share it.
    """

    path: str
    cells: tuple[tuple[str, ...], ...]


@dataclass
class Branch:
    """A region, or regions whose names begin alike: the numbers of its rows, and what is inside.

    sums: for each version the nodes and their costs, all that is inside included. marks: how many rows have each.
    """

    name: str
    rows: list[int] = field(default_factory=list)
    branches: dict[str, "Branch"] = field(default_factory=dict)
    sums: list[Counter[str]] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)


def align_rows(programs: Sequence[Program], differences: Sequence[Difference]) -> list[Row]:
    """Every node of every version in one row, in the order of the last version, what is older behind what it followed."""
    nodes = [{node.name: node for node in values(program)} for program in programs]
    graph: networkx.Graph[Member] = networkx.Graph()
    graph.add_nodes_from((version, name) for version, names in enumerate(nodes) for name in names)
    for version, each in enumerate(differences):
        pairs = [*each.alignment.kept.items()]
        pairs += [pair for group in each.alignment.replaced for pair in product(group.before, group.after)]
        graph.add_edges_from(((version, old), (version + 1, new)) for old, new in pairs)
    together = [*networkx.connected_components(graph)]
    number = {member: place for place, members in enumerate(together) for member in members}
    order: list[int] = []
    for version, names in reversed([*enumerate(nodes)]):
        place = 0
        for name in names:
            if number[version, name] not in order:
                order.insert(place, number[version, name])
            place = order.index(number[version, name]) + 1
    rows = [_row(programs, nodes, together[place]) for place in order]
    shared = Counter(beginning for _, scope, _ in rows for beginning in _beginnings(scope))
    return [
        Row(region or next((each for each in _beginnings(scope) if shared[each] <= MOST_ROWS), scope), cells)
        for region, scope, cells in rows
    ]


def marks(version: int, program: Program, differences: Sequence[Difference]) -> dict[str, tuple[str, ...]]:
    """For each node how it came to be in its version, and what becomes of it in the next; kept where both leave it."""
    found: dict[str, list[str]] = {node.name: [] for node in values(program)}
    for each in differences[version - 1].nodes if version else ():
        for name in each.after:
            found[name].append(each.status)
    for each in differences[version].nodes if version < len(differences) else ():
        for name in each.before:
            found[name].append(each.status)
    given = ("kept",) if differences else ()
    return {name: tuple(dict.fromkeys(statuses)) or given for name, statuses in found.items()}


def grow_tree(rows: Sequence[Row], nodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> Branch:
    """The regions of all rows, by the parts of their names; one that holds nothing but another is joined with it.

    nodes: for each version what is known of each node, by name: its marks, and of an operation its costs.
    """
    root = Branch("")
    for number, row in enumerate(rows):
        branch = root
        for part in row.path.split(".") if row.path else ["(elsewhere)"]:
            branch = branch.branches.setdefault(part, Branch(part))
        branch.rows.append(number)
    _add_up(root, rows, nodes)
    return root


def _add_up(branch: Branch, rows: Sequence[Row], nodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    for key, inner in list(branch.branches.items()):
        _add_up(inner, rows, nodes)
        if len(inner.branches) == 1 and not inner.rows:
            (only,) = inner.branches.values()
            only.name = f"{inner.name}.{only.name}"
            branch.branches[key] = only
    branch.sums = [Counter() for _ in nodes]
    for inner in branch.branches.values():
        branch.marks.update(inner.marks)
        for mine, theirs in zip(branch.sums, inner.sums, strict=True):
            mine.update(theirs)
    for number in branch.rows:
        cells = rows[number].cells
        inside = [[known[name] for name in names] for known, names in zip(nodes, cells, strict=True)]
        branch.marks.update({mark for cell in inside for node in cell for mark in node["marks"]})
        for sums, cell in zip(branch.sums, inside, strict=True):
            for node in cell:
                sums.update({"nodes": 1, **{key: node.get(key) or 0 for key in SUMS}})


def _row(
    programs: Sequence[Program], nodes: Sequence[Mapping[str, fx.Node]], members: set[Member]
) -> tuple[str, str, tuple[tuple[str, ...], ...]]:
    """Region and scope, empty where no version knows one, and the names in each version."""
    inside = [[name for name in names if (version, name) in members] for version, names in enumerate(nodes)]
    facts = [
        program.facts(known[name])
        for program, known, names in zip(programs, nodes, inside, strict=True)
        for name in names
    ]
    regions = [each.region for each in facts if each.region]
    scopes = [each.scope for each in facts if each.scope]
    return (regions or [""])[-1], (scopes or [""])[-1], tuple(map(tuple, inside))


def _beginnings(scope: str) -> list[str]:
    """Of a module's path, from the shortest that may stand for a region to all of it."""
    parts = scope.split(".")
    return [".".join(parts[:count]) for count in range(min(LEAST_PARTS, len(parts)), len(parts) + 1)]
