"""What post-training quantization costs RVM MobileNetV3: every method in every precision, beside the float network.

    python benchmarks/post_training.py --data DATA --checkpoint rvm_mobilenetv3.safetensors
    python benchmarks/post_training.py ... --size 288x512 --seeds 0 --precisions w4a8 w4a4 --methods qdrop ptq4vm

The methods are the named pipelines; `qdrop+GAC` is `ptq4vm` without the flow term. Both have equalized channels and
begin with the `qdrop equalized` program of their precision. Clips are those of footage.py; errors are measured against
the float network's alpha. Each program is made in a process of its own, for its seconds and its peak memory. What is
done is kept in the folder --work, each block and epoch: the same command goes on after a stop. Rows are kept in --rows,
and are measured anew only when what their method stands for has changed; docs/post-training.md is written from those
that have not.
"""

import argparse
import hashlib
import itertools
import json
import os
import resource
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

import mattecompress as mc
from mattecompress import container
from mattecompress.cli.options import parse_size
from mattecompress.errors import UserError
from mattecompress.facts import Precision
from mattecompress.measuring.evaluation import evaluate
from mattecompress.named_pipelines import Brecq, Mse, NamedPipeline, Ptq4vm, Qdrop, Recipe
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import footage
from post_training_page import METRICS, Effort, Row, write_page
from results import machine, say, write_json

MODEL = "rvm-mobilenetv3"
STARTS = {
    "mse": None,
    "mse equalized": None,
    "brecq": "mse",
    "qdrop": "mse",
    "qdrop equalized": "mse equalized",
    "qdrop+GAC": "qdrop equalized",
    "ptq4vm": "qdrop equalized",
}
"""Each method, and the one whose program it goes on from."""
KEPT_EVERY = 2.0
"""Seconds of the processor between two notes of what a program has taken."""


def pipeline(method: str, precision: str, options: argparse.Namespace) -> str:
    """The passes that a method stands for."""
    bits, recipe = Precision.parse(precision), options.recipe
    iterations, epochs = options.iterations, options.epochs
    both = (bits.weight_bits, bits.activation_bits)
    made: dict[str, NamedPipeline] = {
        "mse": Mse(*both),
        "mse equalized": Mse(*both, equalize=recipe == "fast"),
        "brecq": Brecq(*both, recipe, iterations),
        "qdrop": Qdrop(*both, recipe, iterations),
        "qdrop equalized": Qdrop(*both, recipe, iterations, equalize=recipe == "fast"),
        "qdrop+GAC": Ptq4vm(*both, recipe, iterations, epochs=epochs),
        "ptq4vm": Ptq4vm(*both, recipe, iterations, epochs=epochs, flow="dis"),
    }
    return made[method].passes()


class Bench:
    """Makes and measures the programs of one size and seed, each once."""

    def __init__(self, options: argparse.Namespace, seed: int, pool: Executor) -> None:
        self.options, self.seed, self.pool = options, seed, pool
        self.network = mc.capture(MODEL, checkpoint=options.checkpoint, size=options.size)
        tested = footage.test_clips(options.data, options.size, seed)
        self.composites = [clip for clip in tested if clip.alpha is not None]
        self.video = [clip for clip in tested if clip.alpha is None]

    def row(self, precision: str, method: str) -> Row:
        """What a method's program costs, made if it is missing."""
        text = self._text(precision, method)
        made = self._make(precision, method)
        program = container.load(self._path(text, ".mcg"))
        video, composites = (
            evaluate(program, program.run, clips, self.network).metrics
            for clips in (self.video, self.composites)
        )
        scores = {name: video[name] for name in METRICS}
        return Row(
            size=self.options.size,
            seed=self.seed,
            precision=precision,
            method=method,
            passes=text,
            video=scores,
            composites_mad=composites["mad"],
            machine=machine()["cpu"],
            threads=self.options.threads,
            **asdict(made),
        )

    def _make(self, precision: str, method: str) -> Effort:
        """Make the program of a method, after those that it goes on from, where they are missing; what all took."""
        text, start = self._text(precision, method), STARTS[method]
        before = self._make(precision, start) if start else Effort(0, 0)
        path = self._path(text, ".effort.json")
        if not path.exists():
            rest = text.removeprefix(f"{self._text(precision, start)},") if start else text
            say(f"seed {self.seed}, {precision} {method}: {rest}")
            source = self._path(self._text(precision, start), ".mcg") if start else None
            target = self._path(text, ".mcg")
            effort = self.pool.submit(make_program, self.options, self.seed, rest, source, target).result()
            write_json(path, asdict(effort))
        own = Effort(**json.loads(path.read_text()))
        return Effort(before.seconds + own.seconds, max(before.peak_mib, own.peak_mib))

    def _text(self, precision: str, method: str) -> str:
        return pipeline(method, precision, self.options)

    def _path(self, text: str, suffix: str) -> Path:
        options = self.options
        about = [text, options.size, self.seed, options.checkpoint.name]
        return Path(options.work) / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}{suffix}"


class Rows:
    """All rows of a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.path = options, options.rows
        found = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.rows = [Row(**{**document, "size": tuple(document["size"])}) for document in found]

    @property
    def current(self) -> list[Row]:
        """Those whose passes are still what their method stands for."""
        return [row for row in self.rows if row.passes == pipeline(row.method, row.precision, self.options)]

    def have(self, seed: int, precision: str, method: str) -> bool:
        """Whether a row of the size asked for needs no measuring."""
        return any(row.key == (self.options.size, seed, precision, method) for row in self.current)

    def keep(self, row: Row) -> None:
        """In place of what was there for the same program."""
        self.rows = sorted(
            [*(other for other in self.rows if other.key != row.key), row], key=lambda row: row.key
        )
        write_json(self.path, {"rows": [asdict(row) for row in self.rows]})


class Meter:
    """What work has taken since it was first started, kept in a file on the way, so that a stop loses seconds only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = Effort(**json.loads(path.read_text())) if path.exists() else Effort(0, 0)
        self.start = self.kept = time.process_time()

    @property
    def effort(self) -> Effort:
        """Up to now."""
        seconds = self.before.seconds + time.process_time() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Effort(seconds, max(self.before.peak_mib, peak))

    def note(self, done: int, total: int, what: str) -> None:
        """What a pass calls when it has come further."""
        if time.process_time() - self.kept >= KEPT_EVERY:
            write_json(self.path, asdict(self.effort))
            self.kept = time.process_time()


def make_program(
    options: argparse.Namespace, seed: int, text: str, source: Path | None, target: Path
) -> Effort:
    """Save what passes make of a program, or of the network."""
    torch.set_num_threads(options.threads)
    meter = Meter(target.with_suffix(".spent.json"))
    network = mc.capture(MODEL, checkpoint=options.checkpoint, size=options.size)
    clips = footage.calibration_clips(options.data, options.size, seed)
    context = Context(
        clips=[clip.frames for clip in clips],
        teacher=network,
        seed=seed,
        progress=meter.note,
        folder=options.work,
    )
    container.save(parse_pipeline(text).run(container.load(source) if source else network, context), target)
    return meter.effort


def main() -> None:
    """Measure row after row."""
    try:
        options = _parse_options()
        torch.set_num_threads(options.threads)
        options.work.mkdir(parents=True, exist_ok=True)
        rows = Rows(options)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for seed in options.seeds:
                bench = Bench(options, seed, pool)
                for precision, method in itertools.product(options.precisions, options.methods):
                    if not rows.have(seed, precision, method):
                        rows.keep(bench.row(precision, method))
                        write_page(options.output, rows.current)
    except UserError as error:
        say(f"post_training: {error}")
        sys.exit(2)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("MATTECOMPRESS_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="the folder that footage.py describes")
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of RVM MobileNetV3")
    parser.add_argument("--size", type=parse_size, default=(144, 256), metavar="HxW", help="default: 144x256")
    parser.add_argument("--precisions", nargs="+", default=["w8a8", "w4a8", "w4a4"], metavar="wNaM")
    parser.add_argument("--methods", nargs="+", choices=STARTS, default=list(STARTS), help="default: all")
    parser.add_argument("--recipe", choices=Recipe.__args__, default="fast", help="default: fast")
    parser.add_argument("--iterations", type=int, help="for each block; default: the recipe's")
    parser.add_argument("--epochs", type=int, help="of calibrate-affine; default: the recipe's")
    parser.add_argument(
        "--threads", type=int, default=1, help="default: 1, which takes the fewest seconds of the processor"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--work", type=Path, default=Path("post_training_work"), help="what is done is kept here"
    )
    parser.add_argument(
        "--rows", type=Path, default=ROOT / "benchmarks" / "post_training.json", help="what was measured"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "post-training.md", help="the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
