"""Tables that verbs print for people."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mattecompress.cost import Cost
from mattecompress.program import Program


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> None:
    """A table on standard output; the last `numbers` columns are set right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place >= len(columns) - numbers else "left")
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
