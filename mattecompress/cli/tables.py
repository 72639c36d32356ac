"""Tables that verbs print for people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mattecompress.analysis.cost import Cost
from mattecompress.inspection.decisions import Decisions
from mattecompress.inspection.times import FrameTimes
from mattecompress.measuring.emulation import FrameReport
from mattecompress.program import Program


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> None:
    """A table on standard output; the last `numbers` columns are set right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for place, column in enumerate(columns):
        right = place >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_cost(program: Program, cost: Cost) -> None:
    """Costs by region, and their sums."""
    rows = [
        (
            row["region"] or "(elsewhere)",
            str(row["nodes"]),
            f"{row['macs'] / 1e6:.2f}",
            f"{row['binary_macs'] / 1e6:.2f}",
            f"{row['weight_bits'] / 8192:.1f}",
            f"{row['activation_bytes'] / 2**20:.2f}",
        )
        for row in cost.regions
    ]
    title = f"{program.name}: {program.level.value}"
    print_table(title, ("region", "nodes", "M MACs", "M binary", "weights KiB", "activations MiB"), rows, 5)
    totals = cost.totals
    console = Console()
    console.print(
        f"{totals.parameters:,} parameters, {totals.size_mib:.3f} MiB; "
        f"{totals.macs / 1e9:.4f} G MACs, {totals.binary_macs / 1e9:.4f} G binary MACs"
    )
    console.print(
        f"by the papers' rule: {totals.paper_gflops:.4f} GFLOPs; whole model: "
        f"{totals.model_parameters:,} parameters, {totals.paper_size_mib:.4f} MiB"
    )


def print_frame_cost(program: Program, report: FrameReport, most: int = 24) -> None:
    """Instructions of the kernels that take most, their hottest loops, the other kernels, the driver, the sum."""
    rows = [
        (
            kernel.name,
            f"{kernel.instructions / 1e6:.2f}",
            f"{kernel.instructions / report.instructions:.1%}",
            str(kernel.loop.instructions),
            _number(kernel.loop.cycles),
            _number(kernel.loop.limit),
        )
        for kernel in report.kernels[:most]
    ]
    others = sum(kernel.instructions for kernel in report.kernels[most:])
    driver = report.instructions - sum(kernel.instructions for kernel in report.kernels)
    for name, value in ((f"{len(report.kernels[most:])} other kernels", others), ("the driver", driver)):
        rows.append((name, f"{value / 1e6:.2f}", f"{value / report.instructions:.1%}", "", "", ""))
    columns = ("kernel", "M instr.", "share", "loop", "cycles", "limit")
    print_table(f"{program.name} on {report.target}, one frame", columns, rows, 5)
    Console().print(
        f"{report.instructions / 1e9:.4f} G instructions a frame, {report.arena_bytes / 1e6:.2f} MB of working memory"
    )


def print_frame_times(times: FrameTimes) -> None:
    """A line for each kernel, the slowest first, and their sum beside the time of the frame."""
    rows = [
        (
            escape(kernel.name),
            _leading(kernel.nodes),
            escape(kernel.region),
            str(kernel.arithmetic) if kernel.bound == "arithmetic" else kernel.bound,
            f"{kernel.ms:.3f}",
            f"{kernel.limit_ms:.3f}",
            f"{kernel.of_limit:.0%}",
        )
        for kernel in sorted(times.kernels, key=lambda kernel: -kernel.ms)
    ]
    columns = ("kernel", "nodes", "region", "bound by", "ms", "limit ms", "of limit")
    print_table(f"{times.program}: one frame, one thread, medians of {times.runs} runs", columns, rows, 3)
    limit = sum(kernel.limit_ms for kernel in times.kernels)
    Console().print(
        f"kernels {times.kernels_ms:.2f} ms, at least {limit:.2f} ms; the frame {times.frame_ms:.2f} ms"
    )


def _leading(nodes: Sequence[str]) -> str:
    """The first of several, and how many more there are."""
    others = f" +{len(nodes) - 1}" if len(nodes) > 1 else ""
    return f"{escape(nodes[0])}{others}" if nodes else ""


Columns = tuple[tuple[str, str, Callable[[Any], str]], ...]
ERROR_COLUMNS: Columns = (
    ("SQNR dB", "sqnr", lambda value: f"{value:.1f}"),
    ("own dB", "own_sqnr", lambda value: f"{value:.1f}"),
)
DENSITY_COLUMNS: Columns = (("density", "density", lambda value: f"{value:.1%}"),)
TIME_COLUMNS: Columns = (
    ("ms", "time_ms", lambda value: f"{value:.3f}"),
    ("limit ms", "limit_ms", lambda value: f"{value:.3f}"),
    ("of limit", "of_limit", lambda value: f"{value:.0%}"),
)
WORK = ("macs", "binary_macs")
COST_COLUMNS: Columns = (
    ("M MACs", "macs", lambda value: f"{value / 1e6:.2f}"),
    ("M binary", "binary_macs", lambda value: f"{value / 1e6:.2f}"),
    ("weights KiB", "weight_bytes", lambda value: f"{value / 1024:.1f}"),
    ("result KiB", "activation_bytes", lambda value: f"{value / 1024:.1f}"),
    ("alive KiB", "live_bytes", lambda value: f"{value / 1024:.1f}"),
)


def print_rows(program: Program, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each node: its errors or times where they were measured, else its costs.

    Costs that no node has are left out.
    """
    measured = any(row["error"] is not None for row in rows)
    costs = [column for column in COST_COLUMNS if any(row[column[1]] for row in rows)]
    chosen = any(row["density"] is not None for row in rows)
    timed = any(row["time_at"] is not None for row in rows)
    if timed:
        costs = [*(column for column in costs if column[1] in WORK), *TIME_COLUMNS]
    columns = [*(ERROR_COLUMNS if measured else costs), *(DENSITY_COLUMNS if chosen else ())]
    led = any(map(_led_by, rows))
    lines = [
        (
            escape(row["name"]),
            row["op"] if row["bits"] is None else f"{row['op']} w{row['bits']}a{row['activation_bits']}",
            escape(row["region"]),
            *([_led_by(row)] if led else ()),
            *("" if row[field] is None else text(row[field]) for _, field, text in columns),
        )
        for row in rows
    ]
    title = f"{program.name}: {len(rows)} of {len(list(program.operations()))} nodes"
    names = [name for name, _, _ in columns]
    heads = ("node", "op", "region", *(["time at"] if led else ()))
    print_table(title, (*heads, *names), lines, len(names))


def _led_by(row: Mapping[str, Any]) -> str:
    """The nodes that others' time is at; empty for one that leads its kernel."""
    return escape(row["time_at"]) if row["time_at"] not in (None, row["name"]) else ""


def print_decisions(program: Program, decisions: Decisions) -> None:
    """A line for each mask and router: what it chooses from, and the share that it chose."""
    lines = [
        (
            escape(each.node),
            each.kind,
            escape(each.region),
            "x".join(map(str, each.maps.shape[1:])),
            *(f"{share:.1%}" for share in (each.density, min(each.densities), max(each.densities))),
        )
        for each in decisions.decisions
    ]
    title = f"{program.name}: what is computed in places, of {len(decisions.frames)} frames"
    print_table(title, ("node", "kind", "region", "positions", "mean", "least", "most"), lines, 4)


def print_memory(program: Program, rows: Sequence[Mapping[str, Any]], peak: int, width: int = 40) -> None:
    """Bytes alive while each node computes, as bars; where they reach the peak of the program it is marked."""
    console = Console(soft_wrap=True)
    console.print(f"{program.name}: activations alive, at most {peak / 2**20:.2f} MiB", highlight=False)
    for row in rows:
        bar = "#" * round(width * row["live_bytes"] / peak) if peak else ""
        mark = " < peak" if row["live_bytes"] == peak else ""
        line = f"{row['live_bytes'] / 1024:10.1f} KiB {bar:{width}} {row['name']}{mark}"
        console.print(line, style="bold red" if mark else "", highlight=False, markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
