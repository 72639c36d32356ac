"""What post-training quantization costs RVM MobileNetV3: every method in every precision, beside the float network.

    python benchmarks/post_training.py --data DATA --checkpoint rvm_mobilenetv3.safetensors

prints a table and writes post_training.json. The methods are the named pipelines; `qdrop+GAC` is `ptq4vm` without the
flow term, `by channel` has GAC's numbers for each channel, and all begin with the `qdrop` program of their precision.
Clips are those of footage.py. On the test video errors are measured against the float network's alpha; on test
composites, against the true one. What is done is kept in the folder --work, each block and epoch: the same command
goes on after a stop.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import mattecompress as mc
from mattecompress import container
from mattecompress.cli.options import parse_size
from mattecompress.errors import UserError
from mattecompress.evaluation import evaluate
from mattecompress.facts import Precision
from mattecompress.files import atomic_path
from mattecompress.named_pipelines import Brecq, Mse, NamedPipeline, Ptq4vm, Qdrop, Recipe
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import footage

MODEL = "rvm-mobilenetv3"
STARTS = {
    "mse": None,
    "brecq": "mse",
    "qdrop": "mse",
    "qdrop+GAC": "qdrop",
    "qdrop+GAC by channel": "qdrop",
    "ptq4vm": "qdrop",
}
"""Each method, and the one whose program it goes on from."""
METRICS = ("mad", "mse", "grad", "conn", "dtssd")


@dataclass(frozen=True)
class Row:
    """One program: metrics on the video against the float network, MAD on the composites against the truth."""

    precision: str
    method: str
    video: dict[str, float]
    composites_mad: float


def pipeline(method: str, precision: str, recipe: Recipe, iterations: int | None, epochs: int | None) -> str:
    """The passes that a method stands for."""
    bits = Precision.parse(precision)
    both = (bits.weight_bits, bits.activation_bits)
    made: dict[str, NamedPipeline] = {
        "mse": Mse(*both),
        "brecq": Brecq(*both, recipe, iterations),
        "qdrop": Qdrop(*both, recipe, iterations),
        "qdrop+GAC": Ptq4vm(*both, recipe, iterations, epochs),
        "qdrop+GAC by channel": Ptq4vm(*both, recipe, iterations, epochs, numbers="channel"),
        "ptq4vm": Ptq4vm(*both, recipe, iterations, epochs, flow="dis"),
    }
    return made[method].passes()


class Bench:
    """Makes and measures programs, each once for the options it depends on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work
        self.network = mc.capture(MODEL, checkpoint=options.checkpoint, size=options.size)
        self.clips = footage.calibration_clips(options.data, options.size, options.seed)
        tested = footage.test_clips(options.data, options.size, options.seed)
        self.composites = [clip for clip in tested if clip.alpha is not None]
        self.video = [clip for clip in tested if clip.alpha is None]

    def row(self, precision: str, method: str) -> Row:
        """The measured row, from the folder if it is there."""
        path = self._path(self._text(precision, method)).with_suffix(".json")
        if not path.exists():
            measured = self._measure(self.program(precision, method), precision, method)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(asdict(measured), indent=1))
        return Row(**json.loads(path.read_text()))

    def float_row(self) -> Row:
        """The float network itself."""
        return self._measure(self.network, "float", "")

    def program(self, precision: str, method: str) -> Program:
        """The program that a method makes, from the folder if it is there."""
        text, start = self._text(precision, method), STARTS[method]
        path = self._path(text)
        if not path.exists():
            given = self.program(precision, start) if start else self.network
            rest = text.removeprefix(f"{self._text(precision, start)},") if start else text
            say(f"{precision} {method}: {rest}")
            container.save(parse_pipeline(rest).run(given, self._context()), path)
        return container.load(path)

    def _measure(self, program: Program, precision: str, method: str) -> Row:
        video = evaluate(program, program.run, self.video, self.network).metrics
        composites = evaluate(program, program.run, self.composites).metrics["mad"]
        return Row(precision, method, {name: video[name] for name in METRICS}, composites)

    def _text(self, precision: str, method: str) -> str:
        options = self.options
        return pipeline(method, precision, options.recipe, options.iterations, options.epochs)

    def _context(self) -> Context:
        return Context(
            clips=[clip.frames for clip in self.clips],
            alphas=[clip.alpha for clip in self.clips] if self.options.target == "truth" else [],
            teacher=self.network,
            seed=self.options.seed,
            folder=self.work,
        )

    def _path(self, text: str) -> Path:
        options = self.options
        about = [text, options.size, options.seed, options.target, str(options.checkpoint)]
        return Path(self.work) / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.mcg"


def main() -> None:
    """Measure row after row."""
    try:
        options = _parse_options()
        torch.set_num_threads(1)
        bench = Bench(options)
        rows = [bench.float_row()]
        for precision in options.precisions:
            for method in options.methods:
                rows.append(bench.row(precision, method))
                _write(options, rows)
        print_table(options, rows)
    except UserError as error:
        say(f"post_training: {error}")
        sys.exit(2)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("MATTECOMPRESS_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="the folder that footage.py describes")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights of RVM MobileNetV3; default: the shipped ones"
    )
    parser.add_argument("--size", type=parse_size, default=(144, 256), metavar="HxW", help="default: 144x256")
    parser.add_argument("--precisions", nargs="+", default=["w8a8", "w4a8", "w4a4"], metavar="wNaM")
    parser.add_argument("--methods", nargs="+", choices=STARTS, default=list(STARTS), help="default: all")
    parser.add_argument("--recipe", choices=Recipe.__args__, default="fast", help="default: fast")
    parser.add_argument("--iterations", type=int, help="for each block; default: the recipe's")
    parser.add_argument("--epochs", type=int, help="of calibrate-affine; default: the recipe's")
    parser.add_argument(
        "--target", choices=("float", "truth"), default="float", help="composites' alpha to learn from"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=Path("post_training_work"), help="what is done is kept here"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json"), help="the JSON file"
    )
    return parser.parse_args()


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{message}\n")


def _write(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    settings = {
        name: value if isinstance(value, int | list | tuple) else str(value)
        for name, value in vars(options).items()
    }
    document = {"model": MODEL, "settings": settings, "rows": list(map(asdict, rows))}
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def print_table(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """The table, on standard output."""
    height, width = options.size
    table = Table(
        title=f"{MODEL} at {height}x{width}, {options.recipe} recipe",
        title_justify="left",
        header_style="bold",
    )
    for name in ("precision", "method"):
        table.add_column(name)
    for name in (*METRICS, "composites' mad"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [f"{row.video[name]:.3f}" for name in METRICS]
        table.add_row(row.precision, row.method, *numbers, f"{row.composites_mad:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
