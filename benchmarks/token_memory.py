"""Peak memory and time of ViTMatte with exact attention, a tiled decoder and compressed tokens, each in its own process.

    python benchmarks/token_memory.py --size 1024x1024
    python benchmarks/token_memory.py --size 1536x1536 --rows eager,sdpa --json memory.json

Weights are random, so mattes mean nothing; routing takes a quarter of the tokens. Rows below `sdpa` have a tiled decoder,
whose memory would hide theirs. Peak memory is all that a process held at most while it computed one image, libraries and
weights among it; what it held before is named beside.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from mattecompress import container
from mattecompress.models import build_model
from mattecompress.models.signatures import trimap_signature
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.tracing import capture

STRIPS = "tile-decoder{rows=128}"
ROWS = {
    "eager": "canonicalize",
    "sdpa": "sdpa",
    "sdpa-tiled": f"sdpa,{STRIPS}",
    "mematte": f"mematte{{limit=LIMIT}},{STRIPS}",
    "tome": f"tome,{STRIPS}",
    "evit": f"evit,{STRIPS}",
    "dynamicvit": f"dynamicvit,{STRIPS}",
}
"""Pipelines; LIMIT is a quarter of the tokens."""


def main() -> None:
    """Every row in turn, as a table."""
    options = _options()
    if options.program:
        print(json.dumps(measure(options.program)))
        return
    height, width = map(int, options.size.split("x"))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "eager.mcg"
        prepare(options.model, (height, width), plain)
        for row in options.rows.split(","):
            results[row] = run_row(row, plain)
            print_row(row, results[row], results.get("eager"))
    if options.json:
        options.json.write_text(
            json.dumps({"size": options.size, "model": options.model, "rows": results}, indent=1)
        )


def prepare(model: str, size: tuple[int, int], path: Path) -> None:
    """The captured network, with random weights that reach every position."""
    torch.manual_seed(0)
    network = build_model(model, untrained=True)
    for name, parameter in network.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    container.save(capture(network, trimap_signature(size), model), path)


def run_row(row: str, plain: Path) -> dict[str, float]:
    """A row's program, made here and measured in a process of its own."""
    path = plain.with_name(f"{row}.mcg")
    if row != "eager":
        program = container.load(plain)
        height, width = program.facts(program.inputs[0]).sizes[2:]
        limit = -(-height // 32) * -(-width // 32)
        made = parse_pipeline(ROWS[row].replace("LIMIT", str(limit))).run(program)
        send_all(made)
        container.save(made, path)
    words = [sys.executable, __file__, "--program", str(path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def send_all(program: Program) -> None:
    """Let routers send every token to attention, so that the limit decides."""
    for node in program.called_modules(RoutedAttention):
        router = program.module(node.args[2])
        with torch.no_grad():
            router.out_conv[4].bias.copy_(torch.tensor([100.0, 0.0]))


def measure(path: Path) -> dict[str, float]:
    """Seconds of processor time and of the clock, and MiB: held before, and at most while computing."""
    torch.set_num_threads(1)
    program = container.load(path)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        str(node.target): torch.rand(program.facts(node).sizes, generator=generator)
        for node in program.inputs
    }
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    clock, processor = time.perf_counter(), time.process_time()
    with torch.no_grad():
        program.run(**inputs)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return {"seconds": clock, "processor_seconds": processor, "held": before / 2**20, "peak": _peak()}


def _peak() -> float:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def print_row(row: str, result: dict[str, float], eager: dict[str, float] | None) -> None:
    """One line of the table."""
    peak, seconds = result["peak"], result["processor_seconds"]
    beside = f" {peak / eager['peak']:6.1%} {seconds / eager['processor_seconds']:6.1%}" if eager else ""
    print(
        f"{row:14} {peak:8.0f} MiB ({peak - result['held']:.0f} above the start) {seconds:7.2f} s{beside}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1024x1024", help="HEIGHTxWIDTH")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--model", default="vitmatte-small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
