"""What `diff` prints for people."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from mattecompress.cli.tables import print_table
from mattecompress.inspection.difference import SIGNS, STATUSES, Change, Difference, NodeDifference
from mattecompress.inspection.query import sort_rows
from mattecompress.inspection.rows import FIELDS


def print_difference(before: str, after: str, difference: Difference, nodes: bool) -> None:
    """What became of the nodes, by what was done to them or one by one; then the regions that differ; then the sums."""
    counts = {status: sum(getattr(each, status) for each in difference.regions) for status in STATUSES}
    console = Console()
    what = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    console.print(f"[bold]{before} -> {after}[/]: {difference.kept} nodes kept, {what or 'nothing differs'}")
    for text in difference.passes:
        console.print(f"  {text}", markup=False)
    if difference.nodes:
        _print_nodes(difference) if nodes else _print_kinds(difference)
        _print_regions(difference)
    totals = difference.totals_before, difference.totals_after
    if totals[0] and totals[1]:
        sums = [
            f"{name} {_delta(totals[0][key] * factor, totals[1][key] * factor)}"
            for name, key, factor in TOTALS
            if totals[0][key] or totals[1][key]
        ]
        console.print("; ".join(sums), highlight=False)


def print_worst(
    label: str, rows: Iterable[Mapping[str, Any]], difference: Difference, most: int = 10
) -> None:
    """The nodes that add most error of their own, and what was done to them."""
    known = {name: each for each in difference.nodes for name in each.after}
    measured = sort_rows(
        [{**row} for row in rows if row["own_sqnr"] is not None], "own_sqnr", FIELDS, ascending=True
    )
    if not measured:
        Console().print(f"{label}: no node adds error", markup=False)
        return
    lines = [
        (
            escape(row["name"]),
            row["op"] if row["bits"] is None else f"{row['op']} w{row['bits']}a{row['activation_bits']}",
            escape(row["region"]),
            escape(_done_to(known.get(row["name"]))),
            f"{row['sqnr']:.1f}",
            f"{row['own_sqnr']:.1f}",
        )
        for row in measured[:most]
    ]
    columns = ("node", "op", "region", "what became of it", "SQNR dB", "own dB")
    print_table(f"{label}: the nodes that add most error", columns, lines, 2)


def _done_to(node: NodeDifference | None) -> str:
    if node is None:
        return "kept"
    changes = [
        f"{each.what} {each.before} -> {each.after}" if each.what in TOLD else each.what
        for each in node.changes
    ]
    maker = f" by {node.maker}" if node.maker and node.status != "changed" else ""
    return f"{node.status}{maker}{': ' if changes else ''}{', '.join(changes)}"


TOLD = ("precision", "type")
TOTALS = (
    ("M MACs", "macs", 1e-6),
    ("M binary MACs", "binary_macs", 1e-6),
    ("GFLOPs by the papers' rule", "paper_gflops", 1),
    ("MiB of weights", "size_mib", 1),
    ("MiB of activations", "activation_mib", 1),
)
MEASURES = (
    ("M MACs", "macs", 1e-6),
    ("M binary", "binary_macs", 1e-6),
    ("weights KiB", "weight_bits", 1 / 8192),
    ("activations MiB", "activation_bytes", 2**-20),
)
COLOURS = {"changed": "yellow", "replaced": "cyan", "added": "green", "removed": "red"}


def _print_kinds(difference: Difference) -> None:
    counts = Counter(
        (
            each.status,
            each.maker,
            _listed(each.kinds_before),
            _listed(each.kinds_after),
            _listed(dict.fromkeys(change.what for change in each.changes)),
        )
        for each in difference.nodes
    )
    rows = [
        (f"[{COLOURS[status]}]{status}[/]", *rest, str(count))
        for (status, *rest), count in counts.most_common()
    ]
    print_table("what was done", ("", "by", "before", "after", "what changed", "times"), rows, 1)


def _print_nodes(difference: Difference) -> None:
    """A line for each, below its region."""
    console, region = Console(soft_wrap=True), None
    for each in difference.nodes:
        if each.region != region:
            region = each.region
            console.print(f"[bold]{escape(region or '(elsewhere)')}[/]")
        gone, come = (
            ", ".join(f"%{name} {kind}" for name, kind in zip(names, kinds, strict=True))
            for names, kinds in ((each.before, each.kinds_before), (each.after, each.kinds_after))
        )
        what = come if each.status == "changed" else " -> ".join(filter(None, (gone, come)))
        ending = f" by {each.maker}" if each.maker and each.status != "changed" else ""
        changes = "; ".join(map(_change, each.changes))
        shown = escape(f"  {SIGNS[each.status]} {what}{ending}{': ' if changes else ''}{changes}")
        console.print(f"[{COLOURS[each.status]}]{shown}[/]", highlight=False)


def _change(change: Change) -> str:
    apart = "" if change.distance is None else f" ({change.distance:.2%} apart)"
    return f"{change.what} {change.before} -> {change.after}{apart}"


def _print_regions(difference: Difference) -> None:
    """Counts of nodes, and those of the costs that differ somewhere."""
    measures = [
        (name, key, factor)
        for name, key, factor in MEASURES
        if any(
            each.before and each.after and each.before[key] != each.after[key] for each in difference.regions
        )
    ]
    rows = []
    for each in difference.regions:
        counts = zip(STATUSES, (each.changed, each.replaced, each.added, each.removed), strict=True)
        what = " ".join(f"{SIGNS[status]}{count}" for status, count in counts if count)
        if what:
            costs = [
                _delta(each.before[key] * factor, each.after[key] * factor)
                for _, key, factor in measures
                if each.before and each.after
            ]
            rows.append((each.region or "(elsewhere)", what, str(each.kept), *costs))
    legend = ", ".join(f"{SIGNS[status]} {status}" for status in STATUSES)
    columns = ("region", "others", "kept", *(name for name, _, _ in measures))
    print_table(f"regions that differ ({legend})", columns, rows, 1 + len(measures))


def _listed(texts: Iterable[str]) -> str:
    return escape(", ".join(texts))


def _delta(before: float, after: float) -> str:
    texts = [f"{value:.4g}" for value in (before, after)]
    return " -> ".join(dict.fromkeys(texts))
