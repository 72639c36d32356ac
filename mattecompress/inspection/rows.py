"""A program as a table: one row for each operation, with all that is known of it."""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mattecompress.analysis.cost import Cost, cost, layer_precision
from mattecompress.analysis.memory import live_bytes
from mattecompress.inspection.description import kind_of, short_kind
from mattecompress.inspection.error import NodeError
from mattecompress.inspection.query import parse_query, sort_rows
from mattecompress.inspection.times import NodeTime
from mattecompress.program import Program

ERRORS = ("reference", "error", "own_error", "sqnr", "own_sqnr")
TIMES = ("time_ms", "limit_ms", "of_limit", "time_at")
WORST_SMALL = ("sqnr", "own_sqnr", "of_limit", "bits", "activation_bits")
"""Fields whose least value is the worst."""


@dataclass(frozen=True)
class NodeRow:
    """One operation, for one frame.

    op: the operation without its overload and `aten`, or the class of the module. type: element type and shape.
    bits, activation_bits: of a layer that has weights; None for other nodes.
    macs, binary_macs, paper_flops: as `mattecompress.analysis.cost` counts them.
    weight_bytes: storage of the tensors that it is the first to read. activation_bytes: of its result.
    live_bytes: of all activations alive while it computes. masked: only needed where a mask is set.
    maker, origins: the pass that made it, and the nodes that it comes from; empty for captured ones.
    error, sqnr: accumulated error against a reference, as a ratio and in dB; own_error, own_sqnr: what the node adds
        itself. None where nothing was compared; the ratios in dB also where there is no error.
    density: the share of its positions that are computed, where a mask or a router chooses and a clip was run.
    time_ms, limit_ms, of_limit: of the kernels that it leads, what they take, what they would take at least, and the share
        that this is; time_at: the nodes that lead the kernels which compute it. None where no times are given.
    """

    name: str
    op: str
    region: str
    scope: str
    type: str
    bits: int | None
    activation_bits: int | None
    macs: int
    binary_macs: int
    paper_flops: float
    weight_bytes: float
    activation_bytes: int
    live_bytes: int
    masked: bool
    maker: str
    origins: str
    reference: str | None = None
    error: float | None = None
    own_error: float | None = None
    sqnr: float | None = None
    own_sqnr: float | None = None
    density: float | None = None
    time_ms: float | None = None
    limit_ms: float | None = None
    of_limit: float | None = None
    time_at: str | None = None


def _field_type(hint: Any) -> type:
    if hint is bool:
        return bool
    return str if hint in (str, str | None) else float


FIELDS = {name: _field_type(hint) for name, hint in typing.get_type_hints(NodeRow).items()}
"""What can be asked for: text, truth values and numbers."""


def node_rows(
    program: Program,
    errors: Mapping[str, NodeError] | None = None,
    known: Cost | None = None,
    densities: Mapping[str, float] | None = None,
    times: Mapping[str, NodeTime] | None = None,
) -> list[dict[str, Any]]:
    """The table of a program of fixed size, as plain dictionaries with the fields of `NodeRow`, in order.

    errors: as `measure_errors` gives them. known: the program's cost, where it is counted already.
    densities: as `mattecompress.inspection.decisions` has them. times: as `mattecompress.inspection.times` has them.

    Raises:
        OpenSizeError: the program's sizes are symbolic.
    """
    costs = {each.name: each for each in (known or cost(program)).nodes}
    live = live_bytes(program)
    rows = []
    for node in program.operations():
        facts, spent = program.facts(node), costs[node.name]
        precision = layer_precision(program, node)
        error, taken = (errors or {}).get(node.name), (times or {}).get(node.name)
        row = NodeRow(
            name=node.name,
            op=short_kind(kind_of(program, node)),
            region=facts.region or "",
            scope=facts.scope,
            type=facts.type_text,
            bits=precision.weight_bits if precision else None,
            activation_bits=precision.activation_bits if precision else None,
            macs=spent.macs,
            binary_macs=spent.binary_macs,
            paper_flops=spent.paper_flops,
            weight_bytes=spent.weight_bits / 8,
            activation_bytes=spent.activation_bytes,
            live_bytes=live[node.name],
            masked=spent.masked,
            maker=facts.made.maker if facts.made else "",
            origins=",".join(facts.made.origins) if facts.made else "",
            density=(densities or {}).get(node.name),
            **({name: getattr(error, name) for name in ERRORS} if error else {}),
            **({name: getattr(taken, name) for name in TIMES} if taken else {}),
        )
        rows.append(asdict(row))
    return rows


def select(rows: list[dict[str, Any]], where: str | None, sort: str | None) -> list[dict[str, Any]]:
    """The rows that satisfy a query, in the program's order or the worst by a field first.

    Raises:
        QueryError: the query cannot be read, or a field is unknown.
    """
    test = parse_query(where, FIELDS) if where else None
    found = [row for row in rows if test is None or test(row)]
    return sort_rows(found, sort, FIELDS, ascending=_is_ascending(sort)) if sort else found


def _is_ascending(field: str) -> bool:
    """Text runs from a to z, numbers from the worst."""
    return field in WORST_SMALL or FIELDS.get(field) is str
