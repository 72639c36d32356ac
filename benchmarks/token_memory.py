"""Peak memory and time of ViTMatte with exact attention, a tiled decoder and compressed tokens.

    python benchmarks/token_memory.py
    python benchmarks/token_memory.py --sizes 1024x1024 1536x1536 --rows eager sdpa mematte

Each row is one image, laid out pixel by pixel as `run` lays it out, through one program, on one thread, in a process of
its own. Weights are drawn from a seed, so mattes mean nothing; routers send every token to attention, so that the limit,
a quarter of the tokens, decides. Rows below `sdpa` have a tiled decoder, whose memory would hide theirs. Peak memory is
all that the process held at most while it computed, libraries and weights among it; what it held before is kept beside,
and so is what the program's graph says of activations. A row that might need more than 70 % of the memory that is
available is not run.

A row's runs are a JSON file in the folder --work: the same command goes on after a stop, with --runs until each row has
as many, and docs/token-memory.md is written anew from all that the folder holds whenever a row is measured.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from mattecompress import container
from mattecompress.analysis.memory import live_bytes
from mattecompress.capturing.tracing import capture
from mattecompress.cli.options import parse_size
from mattecompress.errors import UserError
from mattecompress.models import build_model
from mattecompress.models.signatures import trimap_signature
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from results import say, write_json
from token_memory_page import Measurement, Row, write_page

STRIPS = "tile-decoder{rows=128}"
PIPELINES = {
    "eager": "canonicalize",
    "sdpa": "sdpa",
    "sdpa-tiled": f"sdpa,{STRIPS}",
    "mematte": f"mematte{{limit=LIMIT}},{STRIPS}",
    "tome": f"tome,{STRIPS}",
    "evit": f"evit,{STRIPS}",
    "dynamicvit": f"dynamicvit,{STRIPS}",
}
"""LIMIT is a quarter of the tokens."""
SIZES = ((1024, 1024), (1536, 1536), (2048, 2048), (2160, 3840))
MIB = 2**20
HELD = 768
"""MiB that a row may hold beside activations: libraries, weights, what operations need within."""
SHARE = 0.7
"""Of the memory that is available, that a row may need."""


def main() -> None:
    """Row after row, small images first."""
    options = _parse_options()
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for size in sorted(options.sizes, key=math.prod):
                measure_size(options, size, pool)
    except UserError as error:
        say(f"token_memory: {error}")
        sys.exit(2)


def measure_size(options: argparse.Namespace, size: tuple[int, int], pool: Executor) -> None:
    """The rows of one size that lack runs, each made in a process of its own and measured in another."""
    with tempfile.TemporaryDirectory() as folder:
        plain, program = Path(folder) / "plain.mcg", Path(folder) / "row.mcg"
        for _, name in product(range(options.runs), options.rows):
            path = options.work / f"{options.model}-{size[0]}x{size[1]}-{name}.row.json"
            runs = read_row(path).runs if path.is_file() else ()
            if len(runs) >= options.runs:
                continue
            if not plain.is_file():
                pool.submit(draw_network, options.model, size, plain).result()
            counted, needed = pool.submit(make_program, name, plain, program).result()
            available = psutil.virtual_memory().available / MIB
            if needed < SHARE * available:
                runs = (*runs, pool.submit(measure, program).result())
                said = f"{runs[-1].peak:.0f} MiB, {runs[-1].seconds:.1f} s"
            else:
                said = f"not run, for it may need {needed:.0f} of the {available:.0f} MiB that are available"
            row = Row(options.model, size, name, counted, runs)
            say(f"{row.place} {name}: {said}")
            write_json(path, asdict(row))
            write_page(options.output, read_rows(options.work, options.model), PIPELINES)


def draw_network(model: str, size: tuple[int, int], path: Path) -> None:
    """Save the captured network, with weights from the seed that reach every position."""
    torch.manual_seed(0)
    network = build_model(model, untrained=True)
    for name, parameter in network.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    container.save(capture(network, trimap_signature(size), model), path)


def make_program(name: str, plain: Path, path: Path) -> tuple[float, float]:
    """Save a row's program; MiB of activations alive at most, and MiB that a run may need."""
    program = container.load(plain)
    height, width = program.facts(program.inputs[0]).sizes[2:]
    limit = -(-height // 32) * -(-width // 32)
    program = parse_pipeline(PIPELINES[name].replace("LIMIT", str(limit))).run(program)
    send_all(program)
    container.save(program, path)
    activations = max(live_bytes(program).values()) / MIB
    return activations, HELD + activations


def send_all(program: Program) -> None:
    """Let routers send every token to attention, so that the limit decides."""
    for node in program.called_modules(RoutedAttention):
        router = program.module(node.args[2])
        with torch.no_grad():
            router.out_conv[4].bias.copy_(torch.tensor([100.0, 0.0]))


def measure(path: Path) -> Measurement:
    """One image through a program, in this process."""
    torch.set_num_threads(1)
    program = container.load(path)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        str(node.target): torch.rand(program.facts(node).sizes, generator=generator).to(
            memory_format=torch.channels_last
        )
        for node in program.inputs
    }
    before = psutil.Process().memory_info().rss / MIB
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    with torch.no_grad():
        program.run(**inputs)
    return Measurement(time.process_time() - start, before, _peak())


def _peak() -> float:
    """MiB that this process has held at most since /proc/self/clear_refs was written."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def read_rows(work: Path, model: str) -> list[Row]:
    """All that a folder holds of a model, in the order of the table."""
    found = [read_row(path) for path in work.glob(f"{model}-*.row.json")]
    return sorted(found, key=lambda row: (row.size[0] * row.size[1], list(PIPELINES).index(row.name)))


def read_row(path: Path) -> Row:
    """One row."""
    document = json.loads(path.read_text())
    runs = tuple(Measurement(**run) for run in document.pop("runs"))
    return Row(size=tuple(document.pop("size")), runs=runs, **document)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = " ".join(f"{height}x{width}" for height, width in SIZES)
    parser.add_argument(
        "--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW", help=f"default: {shown}"
    )
    parser.add_argument("--rows", nargs="+", choices=PIPELINES, default=list(PIPELINES), help="default: all")
    parser.add_argument("--runs", type=int, default=1, help="of each row, in turn; default: 1")
    parser.add_argument("--model", default="vitmatte-small", help="default: vitmatte-small")
    parser.add_argument(
        "--work", type=Path, default=Path("token_memory_work"), help="measured rows are kept here"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "token-memory.md", help="the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
