"""One self-contained page for a browser: a program, or versions of it side by side with what differs between them.

The page loads nothing and needs no server. Its parts are `assets/page.html` (a Jinja2 template), `page.css` and
`page.js`, joined as it is written. What the script reads stands in it as one JSON document:

    {"programs": [{"label", "name", "level", "totals", "nodes": [{"id", "name", "row", "marks", "text", ...}],
                   "decisions": [{"id", "kind", "region", "density", "by_frame", "maps", ...}]}],
     "frames": [PICTURE, ...], "rows": [{"path", "cells": [[ID, ...], ...]}],
     "differences": [as `mattecompress.inspection.difference.Difference`]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import networkx

from mattecompress.analysis.cost import cost
from mattecompress.analysis.propagation import program_symbols
from mattecompress.inspection.decisions import Decisions
from mattecompress.inspection.description import kind_of, short_kind
from mattecompress.inspection.difference import Difference
from mattecompress.inspection.exports import NODE_DATA, Rows, sources, values
from mattecompress.inspection.page_layout import Drawing, lay_out
from mattecompress.inspection.page_pictures import picture_decisions, picture_frames
from mattecompress.inspection.page_rows import SUMS, Row, align_rows, grow_tree, marks
from mattecompress.inspection.page_template import render
from mattecompress.inspection.rows import WORST_SMALL
from mattecompress.program import Program
from mattecompress.text import print_node

TEMPLATE = "page.html"
OVERLAYS = {**NODE_DATA, "activation_bits": "bits of activations"}
UNITS = {
    "macs": ("", "MACs"),
    "binary_macs": ("", "binary MACs"),
    "weight_bytes": ("B", "weights"),
    "activation_bytes": ("B", "results"),
    "time_ms": ("", "ms"),
}


@dataclass(frozen=True)
class Version:
    """A program on the page, under a label.

    rows: as `node_rows` gives them, empty where a size is open. decisions: what it chose, all versions on one clip.
    """

    label: str
    program: Program
    rows: Rows = ()
    decisions: Decisions | None = None


def write_page(path: Path, versions: Sequence[Version], differences: Sequence[Difference] = ()) -> None:
    """Write the page of one version, or of several with the difference of each to the one before it.

    Raises:
        UnwritableError: the file cannot be written.
    """
    programs = [version.program for version in versions]
    rows = align_rows(programs, differences)
    document = page_document(versions, differences, rows)
    nodes = [{node["name"]: node for node in each["nodes"]} for each in document["programs"]]
    render(
        path,
        TEMPLATE,
        document,
        title=" -> ".join(version.label for version in versions),
        tree=grow_tree(rows, nodes),
        rows=rows,
        nodes=nodes,
        drawings=[_drawing(program, known, rows) for program, known in zip(programs, nodes, strict=True)],
        units={key: UNITS[key] for key in SUMS},
        overlays={field: name for field, name in OVERLAYS.items() if _is_known(field, nodes)},
        worst_small=WORST_SMALL,
    )


def page_document(
    versions: Sequence[Version], differences: Sequence[Difference], rows: Sequence[Row]
) -> dict[str, Any]:
    """What the page's script reads."""
    places = [
        {name: place for place, row in enumerate(rows) for name in row.cells[each]}
        for each in range(len(versions))
    ]
    programs = []
    for number, version in enumerate(versions):
        program, given = version.program, marks(number, version.program, differences)
        known = {row["name"]: row for row in version.rows}
        nodes = [
            {
                **_plain_row(program, node),
                **known.get(node.name, {}),
                "id": _identifier(number, node.name),
                "row": places[number][node.name],
                "marks": given[node.name],
                "text": print_node(program, node),
                "sources": [_identifier(number, source.name) for source in sources(node)],
            }
            for node in values(program)
        ]
        programs.append(
            {
                "label": version.label,
                "name": program.name,
                "level": program.level.value,
                "totals": None if program_symbols(program) else asdict(cost(program).totals),
                "nodes": nodes,
                "decisions": [
                    {**each, "id": _identifier(number, each["node"])}
                    for each in (picture_decisions(version.decisions) if version.decisions else ())
                ],
            }
        )
    cells = [
        {
            "path": row.path,
            "cells": [
                [_identifier(number, name) for name in names] for number, names in enumerate(row.cells)
            ],
        }
        for row in rows
    ]
    shown = next((version.decisions for version in versions if version.decisions), None)
    return {
        "programs": programs,
        "frames": picture_frames(shown) if shown else [],
        "rows": cells,
        "differences": [each.as_json() for each in differences],
    }


def _plain_row(program: Program, node: Any) -> dict[str, Any]:
    """What is known of a node whatever its size."""
    facts = program.facts(node)
    return {
        "name": node.name,
        "op": short_kind(kind_of(program, node)),
        "region": facts.region or "",
        "scope": facts.scope,
        "type": facts.type_text,
    }


def _identifier(version: int, name: str) -> str:
    return f"v{version + 1}-{name}"


def _drawing(program: Program, known: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> Drawing:
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for node in values(program):
        graph.add_node(node.name)
        graph.add_edges_from((source.name, node.name) for source in sources(node))
    return lay_out(graph, {name: rows[node["row"]].path for name, node in known.items()})


def _is_known(field: str, nodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> bool:
    return any(node.get(field) for known in nodes for node in known.values())
