"""Time that a frame of RVM MobileNetV3 takes here: our code beside other people's engines, run in turn.

    python benchmarks/frame_time.py                  measure, print a table, write frame_time.json and frame_time.svg
    python benchmarks/frame_time.py --write-readme   put the table of frame_time.json into README.md

Three forms of the network: float, 8-bit weights and activations (`mse`), and one-bit (`rvm-react`). Speed does not
depend on whether a form has been trained. Peers run the float form, ONNX Runtime the 8-bit form too: as its own tool
quantizes the float network, and as we export ours. The one-bit form, which they could only emulate, is set beside
their float. Every run is one frame with the recurrent states carried on.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mattecompress as mc
from mattecompress.cli.options import parse_size
from mattecompress.data.clips import procedural_clip
from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.preparation import compile_program
from mattecompress.program import Program
from mattecompress.running.stream import Runner, Stream
from mattecompress.timing import Work, time_in_turn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers
from results import machine, say, write_json

MODEL = "rvm-mobilenetv3"
PIPELINES = {"float": None, "w8a8": "mse{weights=8 activations=8}", "rvm-react": "rvm-react"}
PACKAGES = ("torch", "onnxruntime", "openvino", "ncnn", "apache-tvm")
MARKERS = ("<!-- bench -->", "<!-- /bench -->")
OURS = "ours"
REST = 0.3
"""Seconds in which an engine's waiting threads go to sleep: OpenMP's spin for up to 0.2 s."""

COLUMNS = ("form", "runner", "threads", "ms a frame", "frames/s", "ours is faster by")


def run_ours(program: Program, threads: int) -> Runner:
    """Our compiled code."""
    return compile_program(program, "tvm", threads=threads).over_clips()


RUNNERS: dict[str, tuple[tuple[str, str], peers.Make]] = {
    "ours": (("float", "float"), run_ours),
    "onnxruntime": (("float", "float"), peers.onnxruntime),
    "openvino": (("float", "float"), peers.openvino),
    "ncnn": (("float", "float"), peers.ncnn),
    "torch eager": (("float", "float"), peers.torch_eager),
    "torch.compile": (("float", "float"), peers.torch_compile),
    "ours, w8a8": (("w8a8", "w8a8"), run_ours),
    "onnxruntime, int8": (("w8a8", "float"), peers.onnxruntime_int8),
    "onnxruntime, our w8a8": (("w8a8", "w8a8"), peers.onnxruntime),
    "ours, rvm-react": (("rvm-react", "rvm-react"), run_ours),
}
"""By name: the form that it is a runner of and the form that it is given, and what makes it."""


@dataclass(frozen=True)
class Row:
    """Milliseconds a frame of one runner."""

    form: str
    runner: str
    threads: int
    median_ms: float
    best_ms: float
    worst_ms: float


def main() -> None:
    """Measure, or write the README."""
    try:
        options = _parse_options()
        if options.write_readme:
            write_readme(ROOT / "README.md", json.loads(options.output.read_text()))
        else:
            document = measure(options)
            write_json(options.output, document)
            plot(document, options.output.with_suffix(".svg"))
            print_table(document)
            say(f"written to {options.output} and {options.output.with_suffix('.svg')}")
    except (UserError, FileNotFoundError) as error:
        say(f"frame_time: {error}")
        sys.exit(2)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="weights of RVM MobileNetV3; default: the shipped ones"
    )
    parser.add_argument("--size", type=parse_size, default=(288, 512), metavar="HxW", help="default: 288x512")
    parser.add_argument("--runs", type=int, default=30, help="runs of each, in turn; default: 30")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS), help="default: all")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json"), help="the JSON file"
    )
    parser.add_argument(
        "--write-readme", action="store_true", help="measure nothing, put --output into README.md"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The document: machine, settings, and for each runner and number of threads the milliseconds a frame."""
    torch.set_num_threads(1)
    programs = make_programs(options.checkpoint, options.size)
    frame = procedural_clip(7, 0, 1, *options.size).frames
    rows = [
        row
        for threads in options.threads
        for row in _measure(programs, frame, options.runners, threads, options.runs)
    ]
    return {
        "machine": machine(),
        "versions": versions(),
        "model": MODEL,
        "checkpoint": str(options.checkpoint or "shipped"),
        "size": list(options.size),
        "runs": options.runs,
        "weights_mib": {form: mc.inspect(program).totals.size_mib for form, program in programs.items()},
        "frames": list(map(asdict, rows)),
    }


def make_programs(checkpoint: Path | None, size: tuple[int, int]) -> dict[str, Program]:
    """Each form at `size`, (height, width)."""
    network = mc.capture(MODEL, checkpoint=checkpoint, size=size)
    clips = [procedural_clip(1000, 0, 4, *size).frames]
    return {form: mc.opt(network, text, clips) if text else network for form, text in PIPELINES.items()}


def _measure(
    programs: Mapping[str, Program], frame: torch.Tensor, names: Sequence[str], threads: int, runs: int
) -> Iterator[Row]:
    works: dict[str, Work] = {}
    for name in names:
        (_, given), make = RUNNERS[name]
        say(f"prepare {name}, {threads} threads")
        works[name] = _work(programs[given], make(programs[given], threads), frame)
    rest = REST if threads > 1 else 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{len(works)} runners in turn, {threads} threads", total=runs)
        times = time_in_turn(works, runs, lambda done, _: progress.update(task, completed=done), rest)
    for name, values in times.items():
        (form, _), _ = RUNNERS[name]
        yield Row(form, name.partition(",")[0] if name.startswith(OURS) else name, threads, *_summary(values))


def _work(program: Program, run: Runner, frame: torch.Tensor) -> Work:
    stream = Stream(program, run)
    return lambda: stream(frame)


def _summary(milliseconds: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(milliseconds), min(milliseconds), max(milliseconds)


def versions() -> dict[str, str]:
    """Of the packages that take part, where they are installed."""
    installed = {str(package.name).lower() for package in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}


def table_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Form, runner, threads, median, frames a second, and how much less time our code of the same form takes.

    The one-bit form, which has no peer, is compared with everybody's float in lines of its own.
    """
    frames = [Row(**row) for row in document["frames"]]
    ours = {(row.form, row.threads): row.median_ms for row in frames if row.runner == OURS}
    rows = [_table_row(row, ours.get((row.form, row.threads))) for row in frames]
    for row in frames:
        if row.form == "float" and row.runner != OURS and ("rvm-react", row.threads) in ours:
            rows.append(_table_row(row, ours["rvm-react", row.threads], "rvm-react", f"{row.runner}, float"))
    return rows


def _table_row(row: Row, ours: float | None, form: str = "", runner: str = "") -> tuple[str, ...]:
    ratio = f"{row.median_ms / ours:.2f}x" if ours else ""
    median, rate = f"{row.median_ms:.1f}", f"{1e3 / row.median_ms:.1f}"
    return form or row.form, runner or row.runner, str(row.threads), median, rate, ratio


def _title(document: Mapping[str, Any]) -> str:
    height, width = document["size"]
    return (
        f"{document['model']} at {height}x{width}, medians of {document['runs']} runs in turn, "
        f"{document['machine']['cpu']}"
    )


def print_table(document: Mapping[str, Any]) -> None:
    """The table, on standard output."""
    table = Table(title=_title(document), title_justify="left", header_style="bold")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if place > 1 else "left")
    for row in table_rows(document):
        table.add_row(*row)
    Console().print(table)


def plot(document: Mapping[str, Any], path: Path) -> None:
    """A bar for each runner, its colour the form's, as SVG."""
    from matplotlib.figure import Figure

    rows = [Row(**row) for row in document["frames"]]
    colours = dict(zip(PIPELINES, ("#5b7db1", "#d98c3f", "#5a9367"), strict=True))
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row.form}: {row.runner}, {row.threads} thr." for row in rows]
    bars = axes.barh(labels, [row.median_ms for row in rows], color=[colours[row.form] for row in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame")
    axes.set_title(_title(document), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def markdown(document: Mapping[str, Any]) -> str:
    """The table for the README."""
    names = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"{_title(document)}; {names}:",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(document)]
    return "\n".join(lines)


def write_readme(path: Path, document: Mapping[str, Any]) -> None:
    """Put the table between the markers of a Markdown file."""
    before, start, rest = path.read_text().partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not start or not end:
        raise UserError(f"{path} has no {MARKERS[0]} ... {MARKERS[1]}: put them where the table goes")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{start}\n{markdown(document)}\n{end}{after}")


if __name__ == "__main__":
    main()
