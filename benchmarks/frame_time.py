"""Time a frame of RVM MobileNetV3 costs here: our code beside ONNX Runtime and torch, one thread, run in turn.

    python benchmarks/frame_time.py                  measure, print a table, write frame_time.json
    python benchmarks/frame_time.py --write-readme   put the table of frame_time.json into README.md

Three forms of the network: float, 8-bit weights and activations (`mse`), and one-bit (`rvm-react`). Speed does not
depend on whether a form has been trained. ONNX Runtime may take its fastest way, merged integer kernels, which is not
held to the reference's last place; the one-bit form, which it could only emulate, is measured for ours alone and set
beside the float peers. Every run is one frame with the recurrent states carried on.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mattecompress as mc
from mattecompress.backends import load_backend
from mattecompress.benchmark import Work, time_in_turn
from mattecompress.cli.options import parse_size
from mattecompress.data.clips import procedural_clip
from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.preparation import compile_program
from mattecompress.program import Program
from mattecompress.stream import Run, Stream

ROOT = Path(__file__).resolve().parent.parent
MODEL = "rvm-mobilenetv3"
PIPELINES = {"float": None, "w8a8": "mse{weights=8 activations=8}", "rvm-react": "rvm-react"}
PACKAGES = ("torch", "onnxruntime", "apache-tvm")
MARKERS = ("<!-- bench -->", "<!-- /bench -->")
BASELINE = "float, onnxruntime"
THREADS = 1


def main() -> None:
    """Measure, or write the README."""
    try:
        options = _parse_options()
        if options.write_readme:
            write_readme(ROOT / "README.md", json.loads(options.output.read_text()))
        else:
            document = measure(options)
            with atomic_path(options.output) as temporary:
                temporary.write_text(json.dumps(document, indent=1) + "\n")
            print_table(document)
            say(f"written to {options.output}")
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
    parser.add_argument("--forms", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument(
        "--torch-compile", action="store_true", help="also time torch.compile, which takes minutes"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json"), help="the JSON file"
    )
    parser.add_argument(
        "--write-readme", action="store_true", help="measure nothing, put --output into README.md"
    )
    return parser.parse_args()


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{message}\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The document: machine, settings, and for each form and runner the milliseconds a frame."""
    torch.set_num_threads(THREADS)
    programs = make_programs(options.checkpoint, options.size, options.forms)
    frame = procedural_clip(7, 0, 1, *options.size).frames
    works: dict[str, Work] = {}
    for form, program in programs.items():
        for runner, make in runners(form, options).items():
            say(f"prepare {form}, {runner}")
            works[f"{form}, {runner}"] = _work(program, make(program), frame)
    say(f"time {len(works)} ways, {options.runs} runs each in turn")
    times = time_in_turn(works, options.runs)
    return {
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "model": MODEL,
        "checkpoint": str(options.checkpoint or "shipped"),
        "size": list(options.size),
        "threads": THREADS,
        "runs": options.runs,
        "weights_mib": {form: mc.inspect(program).totals.size_mib for form, program in programs.items()},
        "frames": {name: summary(values) for name, values in times.items()},
    }


def make_programs(checkpoint: Path | None, size: tuple[int, int], forms: Sequence[str]) -> dict[str, Program]:
    """Each form at `size`, (height, width)."""
    network = mc.capture(MODEL, checkpoint=checkpoint, size=size)
    clips = [procedural_clip(1000, 0, 4, *size).frames]
    pipelines = {form: PIPELINES[form] for form in forms}
    return {form: mc.opt(network, text, clips) if text else network for form, text in pipelines.items()}


def runners(form: str, options: argparse.Namespace) -> dict[str, Callable[[Program], Run]]:
    """Who runs a form, by name; each makes a function from inputs to outputs."""

    def onnxruntime(program: Program) -> Run:
        return load_backend("onnx")(threads=THREADS, exact=False, verify=False).compile(program).run

    def torch_compile(program: Program) -> Run:
        compiled = torch.compile(program.graph_module)

        @torch.no_grad()
        def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            values = compiled(*(inputs[name] for name in program.input_names))
            return dict(zip(program.output_names, values, strict=True))

        return run

    made: dict[str, Callable[[Program], Run]] = {"ours": lambda p: compile_program(p, "tvm").run}
    if form != "rvm-react":
        made["onnxruntime"] = onnxruntime
    if form == "float":
        made["torch eager"] = lambda program: compile_program(program, "reference").run
        if options.torch_compile:
            made["torch.compile"] = torch_compile
    return made


def _work(program: Program, run: Run, frame: torch.Tensor) -> Work:
    stream = Stream(program, run)
    return lambda: stream(frame)


def machine() -> dict[str, Any]:
    """What the numbers are true of."""
    found = None
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = found[1] if found else platform.processor()
    return {"cpu": name or platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, best and worst."""
    return {
        "median_ms": statistics.median(milliseconds),
        "best_ms": min(milliseconds),
        "worst_ms": max(milliseconds),
    }


def table_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Form, runner, median, frames a second, and how many times faster than ONNX Runtime: float, and same form."""
    frames = document["frames"]
    rows = []
    for name, times in frames.items():
        form, _, runner = name.partition(", ")
        median = times["median_ms"]
        peers = (frames.get(BASELINE), frames.get(f"{form}, onnxruntime"))
        ratios = [f"{peer['median_ms'] / median:.2f}x" if peer else "" for peer in peers]
        rows.append((form, runner, f"{median:.1f}", f"{1e3 / median:.1f}", *ratios))
    return rows


COLUMNS = ("form", "runner", "ms a frame", "frames/s", "vs onnxruntime float", "vs onnxruntime same form")


def _title(document: Mapping[str, Any]) -> str:
    height, width = document["size"]
    return (
        f"{document['model']} at {height}x{width}, {document['threads']} thread, medians of {document['runs']} runs "
        f"in turn, {document['machine']['cpu']}"
    )


def print_table(document: Mapping[str, Any]) -> None:
    """The table, on standard output."""
    table = Table(title=_title(document), title_justify="left", header_style="bold")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if place > 1 else "left")
    for row in table_rows(document):
        table.add_row(*row)
    Console().print(table)


def markdown(document: Mapping[str, Any]) -> str:
    """The table for the README."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"{_title(document)}; {versions}:",
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
