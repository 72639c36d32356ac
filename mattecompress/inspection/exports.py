"""A program's graph for other tools: DOT, and the graph and node data of Model Explorer.

Formats: the DOT language of Graphviz; Model Explorer's JSON as its package `ai-edge-model-explorer` 0.1.34 declares it
in `graph_builder` and `node_data_builder`.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.inspection.description import kind_of, short_kind
from mattecompress.inspection.rows import WORST_SMALL
from mattecompress.program import Program

Rows = Sequence[Mapping[str, Any]]

NODE_DATA = {
    "macs": "multiply-accumulates",
    "binary_macs": "binary multiply-accumulates",
    "weight_bytes": "bytes of weights",
    "activation_bytes": "bytes of the result",
    "live_bytes": "bytes alive",
    "bits": "bits of weights",
    "sqnr": "SQNR, dB",
    "own_sqnr": "own SQNR, dB",
    "density": "share that is computed",
    "time_ms": "milliseconds",
    "of_limit": "limit, as a share of the time",
}
GRADIENT = ("white", "#dc2626")
COLOURS = {1: "#fecaca", 2: "#fed7aa", 4: "#fef08a", 8: "#bbf7d0", 16: "#bae6fd", 32: "#f3f4f6"}
"""Of layers, by the bits of their weights: the next that are no fewer."""


class DrawingError(UserError):
    """Graphviz is absent, or does not draw the format."""


def write_drawing(program: Program, path: Path) -> None:
    """Write the graph as DOT, or as a picture that Graphviz draws of it: the suffix decides.

    Raises:
        DrawingError: it is to be a picture, and the program `dot` is not on PATH or does not know the format.
        UnwritableError: the file cannot be written.
    """
    text = dot_text(program)
    if path.suffix in (".dot", ".gv", ""):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
        return
    tool = shutil.which("dot")
    if tool is None:
        raise DrawingError(
            f"{path}: `dot` of Graphviz is not on PATH: install it, or name a file that ends in .dot"
        )
    with atomic_path(path) as temporary:
        words = [tool, f"-T{path.suffix[1:]}", "-o", str(temporary)]
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or ["it failed"]
            raise DrawingError(f"{path}: dot: {reason[0]}")


def dot_text(program: Program) -> str:
    """The graph in the DOT language: a cluster for each region, layers in the colour of their bits."""
    regions: dict[str, list[str]] = {}
    for node in values(program):
        facts = program.facts(node)
        lines = [node.name, short_kind(kind_of(program, node)), facts.type_text]
        bits = facts.precision.weight_bits if facts.precision else None
        colour = f', fillcolor="{_colour(bits)}"' if bits else ""
        if facts.precision:
            lines.append(str(facts.precision))
        label = "\\n".join(map(_quoted, lines))
        regions.setdefault(facts.region or "", []).append(
            f'"{_quoted(node.name)}" [label="{label}"{colour}];'
        )
    written = [
        f'digraph "{_quoted(program.name)}" {{',
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif", fontsize=10];',
        *(f"  {line}" for line in regions.pop("", [])),
    ]
    for number, (region, lines) in enumerate(regions.items()):
        written += [
            f"  subgraph cluster_{number} {{",
            f'    label="{_quoted(region)}"; color="#9ca3af"; fontname="sans-serif";',
            *(f"    {line}" for line in lines),
            "  }",
        ]
    edges = [
        f'  "{_quoted(source.name)}" -> "{_quoted(node.name)}";'
        for node in values(program)
        for source in sources(node)
    ]
    outputs = [
        line
        for name, node in program.outputs.items()
        for line in (
            f'  "output {_quoted(name)}" [label="{_quoted(name)}", shape=oval];',
            f'  "{_quoted(node.name)}" -> "output {_quoted(name)}";',
        )
    ]
    return "\n".join([*written, *edges, *outputs, "}", ""])


def write_model_explorer(program: Program, rows: Rows, folder: Path) -> list[Path]:
    """Write `graph.json` for Model Explorer, and a file of node data for each figure that `rows` have; returns them.

    rows: as `mattecompress.inspection.rows.node_rows` gives them.

    Raises:
        UnwritableError: a file cannot be written.
    """
    documents = {"graph.json": explorer_graph(program, rows)}
    for field, name in NODE_DATA.items():
        if any(row[field] for row in rows):
            documents[f"{field}.json"] = explorer_data(program, rows, field, name)
    for name, document in documents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(json.dumps(document, indent=1))
    return [folder / name for name in documents]


def explorer_graph(program: Program, rows: Rows) -> dict[str, Any]:
    """Model Explorer's graph: regions and scopes become layers that open and close."""
    known = {row["name"]: row for row in rows}
    nodes = [_explorer_node(program, node, known.get(node.name, {})) for node in values(program)]
    for name, node in program.outputs.items():
        edges = [{"sourceNodeId": node.name, "sourceNodeOutputId": "0", "targetNodeInputId": "0"}]
        nodes.append({"id": f"output {name}", "label": name, "namespace": "", "incomingEdges": edges})
    return {"label": program.name, "graphs": [{"id": program.name, "nodes": nodes}]}


def explorer_data(program: Program, rows: Rows, field: str, name: str) -> dict[str, Any]:
    """Model Explorer's node data: one figure of every node that has it, the worst in red."""
    results = {row["name"]: {"value": row[field]} for row in rows if row[field] is not None}
    ends = GRADIENT[::-1] if field in WORST_SMALL else GRADIENT
    gradient = [{"stop": stop, "bgColor": colour} for stop, colour in enumerate(ends)]
    return {program.name: {"name": name, "results": results, "gradient": gradient}}


def _explorer_node(program: Program, node: fx.Node, row: Mapping[str, Any]) -> dict[str, Any]:
    facts = program.facts(node)
    attributes = {
        "type": facts.type_text,
        "precision": facts.precision,
        "scope": facts.scope,
        "made": facts.made,
    }
    attributes |= {field: row.get(field) for field in NODE_DATA}
    edges = [
        {"sourceNodeId": source.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(place)}
        for place, source in enumerate(sources(node))
    ]
    shape = [{"key": "tensor_shape", "value": facts.type_text}]
    return {
        "id": node.name,
        "label": short_kind(kind_of(program, node)),
        "namespace": (facts.region or facts.scope).replace(".", "/"),
        "attrs": [{"key": key, "value": str(value)} for key, value in attributes.items() if value],
        "incomingEdges": edges,
        "outputsMetadata": [{"id": "0", "attrs": shape}],
    }


def values(program: Program) -> list[fx.Node]:
    """What is drawn: inputs, then operations, in order."""
    return [*program.inputs, *program.operations()]


def sources(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads, tensors of the program left out."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def _colour(bits: int) -> str:
    return COLOURS[next((known for known in COLOURS if known >= bits), 32)]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
