"""Pictures of a scan: the error of each region by precision, and the choices between size and error."""

from collections.abc import Sequence
from pathlib import Path

from mattecompress.errors import MissingExtraError
from mattecompress.files import atomic_path
from mattecompress.measuring.sensitivity import MIB, Scan


def require_matplotlib() -> None:
    """Raise `MissingExtraError` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error


def plot_scan(scan: Scan, measured: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Write a picture in the format of the path's suffix.

    measured: whole programs to mark: name, bytes of weights, error.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    regions = list(dict.fromkeys(cell.region for cell in scan.cells))
    figure = Figure(figsize=(12, 0.25 * len(regions) + 2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for precision in dict.fromkeys(cell.precision for cell in scan.cells):
        errors = {cell.region: cell.error for cell in scan.cells if cell.precision == precision}
        left.plot([errors[region] for region in regions], regions, "o", label=precision)
    left.invert_yaxis()
    left.set_xlabel("mean squared error of alpha, this region alone")
    sizes = [choice.weight_bytes / MIB for choice in scan.choices]
    right.step(
        sizes, [choice.error for choice in scan.choices], "o-", where="post", markersize=3, label="expected"
    )
    for name, size, whole in measured:
        right.plot([size / MIB], [whole], "s", label=f"{name}, measured")
    right.set_xlabel("MiB of weights")
    right.set_ylabel("mean squared error of alpha")
    for axes in (left, right):
        axes.set_xscale("log" if axes is left else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    right.set_yscale("log")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
