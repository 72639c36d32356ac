"""What each idea of BiVM is worth: networks of one bit, trained alike on the same clips, then measured on others.

    python benchmarks/ablation.py --teacher twin/weights.safetensors

trains every variant with every seed and writes docs/ablation.md anew whenever a run ends. All begin from random weights
and take as many steps, with one recipe; variants that mimic have the same trained teacher, of model bivm-32bit. --budget
says what a run may take: `400` steps, or `12m`, minutes of one core as the mean over the variants, whose steps are timed
first. A finished run is a JSON file in the folder --work: the same command goes on after a stop.
"""

import argparse
import hashlib
import json
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

import mattecompress as mc
from mattecompress.errors import UserError
from mattecompress.models import build_model
from mattecompress.models.bimatting import BiVM
from mattecompress.models.binary_layers import Form
from mattecompress.modules.spatial_mask import SpatialMaskConfig
from mattecompress.training.beginning import build_network
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.loop import Run
from mattecompress.training.network import BiMattingNetwork, Network, ProgramNetwork
from mattecompress.training.recipes import Rates, Recipe, Stage
from mattecompress.training.state import TrainingError
from mattecompress.training.world import World

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from ablation_page import Plan, Result, write_page
from results import say, write_json

TEACHER = "bivm-32bit"
EVERYWHERE = SpatialMaskConfig("residual", 0.0)
"""A mask that is 1 at every position."""
WEIGHT = 1e-4
HELD_OUT = HeldOut(clips=24, frames=8, height=96, width=160)
TIMED_STEPS = 10


@dataclass(frozen=True)
class Variant:
    """A network and how it is taught.

    pipeline: makes it of an RVM MobileNetV3; else it is `model`, with `mask` where one is given.
    mimicking, evolution: weights of the two losses in the first stage.
    """

    about: str
    pipeline: str = ""
    model: str = "bivm"
    mask: SpatialMaskConfig | None = None
    mimicking: float = 0.0
    evolution: float = 0.0

    def network(self, seed: int) -> Network:
        """With random weights."""
        torch.manual_seed(seed)
        if self.pipeline:
            return ProgramNetwork(
                mc.opt(mc.capture("rvm-mobilenetv3", untrained=True), self.pipeline, seed=seed)
            )
        if self.model == "bivm":
            return BiMattingNetwork(BiVM(Form(elastic=True), mask=self.mask, seed=seed).eval())
        return BiMattingNetwork(build_model(self.model, untrained=True))

    def recipe(self, steps: int) -> Recipe:
        """Pictures, then at lower rates clips; taught in the first stage only, as in the paper."""
        moving = steps // 5
        still = Stage(
            steps - moving,
            4,
            1,
            96,
            160,
            Rates(1e-3, 1e-3, 1e-3),
            fade=0.3,
            bfloat16=False,
            mimicking=self.mimicking,
            evolution=self.evolution,
        )
        clips = Stage(moving, 4, 2, 96, 160, Rates(3e-4, 3e-4, 3e-4), fade=0.1, bfloat16=False)
        stages = (still, clips) if moving else (still,)
        teacher = TEACHER if self.mimicking else ""
        return Recipe(
            self.model,
            stages,
            warmup=min(50, steps // 4),
            clip_norm=1.0,
            average=0.99,
            teacher=teacher,
            coarse=0.25,
        )


VARIANTS = {
    "rvm-bnn": Variant("RVM, no scales", pipeline="rvm-bnn"),
    "rvm-dorefa": Variant("RVM, one scale a layer, activations 0 and 1", pipeline="rvm-dorefa"),
    "rvm-recu": Variant("RVM, rectified clamp, learned scales", pipeline="rvm-recu"),
    "rvm-react": Variant("RVM, learned thresholds, a scale a filter", pipeline="rvm-react"),
    "bimatting": Variant("BiMatting", model="bimatting"),
    "bivm": Variant("BiVM", mimicking=WEIGHT, evolution=WEIGHT),
    "bivm-no-mimicking": Variant("BiVM without a teacher", evolution=WEIGHT),
    "bivm-fixed-shortcuts": Variant(
        "BiVM with a = 1, b as in BiMatting, c = 0", model="bimatting", mimicking=WEIGHT
    ),
    "bivm-dense": Variant("BiVM with a mask of ones", mask=EVERYWHERE, mimicking=WEIGHT, evolution=WEIGHT),
    "bivm-32bit": Variant("BiVM's float twin", model="bivm-32bit"),
}


def train_one(name: str, seed: int, steps: int, teacher: Path) -> Result:
    """Train and measure one variant."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    run = _begin(variant, seed, steps, teacher)
    if not _advance(run, steps):
        return Result(name, seed, run.state.seconds, {})
    with tempfile.TemporaryDirectory() as place:
        record = run.finish(Path(place), name, HELD_OUT, {})
    scores = {answer: record.held_out[answer] for answer in ("network", "all_zero", "mean_alpha")}
    return Result(name, seed, run.state.seconds, scores)


def time_one(name: str, teacher: Path) -> float:
    """Mean seconds of a variant's step, over a recipe of a few; of those before it diverges."""
    torch.set_num_threads(1)
    run = _begin(VARIANTS[name], 0, TIMED_STEPS, teacher)
    start = time.process_time()
    _advance(run, TIMED_STEPS)
    return (time.process_time() - start) / max(run.state.step, 1)


def _advance(run: Run, steps: int) -> bool:
    """Take that many steps; False where the loss is no longer finite."""
    try:
        for _ in range(steps):
            run.advance()
    except TrainingError:
        return False
    return True


def _begin(variant: Variant, seed: int, steps: int, teacher: Path) -> Run:
    guide = build_network(TEACHER, 0, teacher) if variant.mimicking else None
    return Run(variant.recipe(steps), seed, World(0, 1, "cpu"), variant.network(seed), teacher=guide)


def make_plan(options: argparse.Namespace, pool: Executor) -> Plan:
    """The folder's plan, or a new one.

    Raises:
        UserError: the folder has another.
    """
    path = options.work / "plan.json"
    if not options.teacher.is_file():
        raise UserError(
            f"{options.teacher}: no such file; train it: mattecompress train --recipe bivm-32bit-small"
        )
    teacher = hashlib.sha256(options.teacher.read_bytes()).hexdigest()
    if path.is_file():
        plan = Plan(**json.loads(path.read_text()))
        if (plan.budget, plan.teacher) != (options.budget, teacher):
            raise UserError(
                f"{options.work}: was begun with another budget or teacher; choose another with --work"
            )
        return plan
    pace: dict[str, float] = {}
    steps, minutes = read_budget(options.budget)
    if minutes:
        timed = {name: pool.submit(time_one, name, options.teacher) for name in options.variants}
        pace = {name: round(future.result(), 3) for name, future in timed.items()}
        say(", ".join(f"{name} {seconds:.2f}" for name, seconds in pace.items()) + " s a step")
        steps = max(1, int(minutes * 60 / statistics.mean(pace.values())))
    plan = Plan(options.budget, steps, teacher, pace)
    write_json(path, asdict(plan))
    return plan


def read_budget(text: str) -> tuple[int, float]:
    """Steps and minutes, one of them 0.

    Raises:
        UserError: neither `400` nor `12m`.
    """
    found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)m", text)
    if not found or not float(found[1] or found[2]):
        raise UserError(f"--budget {text}: expected steps, such as 400, or minutes, such as 12m")
    return int(found[1] or 0), float(found[2] or 0)


def read_results(work: Path) -> list[Result]:
    """Of the runs that are done, in the order of the table."""
    found = [Result(**json.loads(path.read_text())) for path in sorted(work.glob("run-*.json"))]
    return sorted(found, key=lambda result: (list(VARIANTS).index(result.variant), result.seed))


def main() -> None:
    """Run after run, two at a time."""
    options = _parse_options()
    about = {name: variant.about for name, variant in VARIANTS.items()}
    try:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            plan = make_plan(options, pool)
            bivm = VARIANTS["bivm"].recipe(plan.steps)
            done = {(result.variant, result.seed) for result in read_results(options.work)}
            wanted = [(name, seed) for seed in range(1, options.seeds + 1) for name in options.variants]
            runs = [
                pool.submit(train_one, *run, plan.steps, options.teacher) for run in wanted if run not in done
            ]
            for future in as_completed(runs):
                result = future.result()
                write_json(options.work / f"run-{result.variant}-{result.seed}.json", asdict(result))
                said = f"MAD {result.scores['network']['mad']:.1f}" if result.scores else "diverged"
                say(f"{result.variant}, seed {result.seed}: {said}")
                write_page(options.output, plan, bivm, HELD_OUT, about, read_results(options.work))
        write_page(options.output, plan, bivm, HELD_OUT, about, read_results(options.work))
    except UserError as error:
        say(f"ablation: {error}")
        sys.exit(2)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help=f"trained weights of {TEACHER}")
    parser.add_argument("--budget", default="12m", help="of a run: steps or minutes; default: 12m")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of a variant; default: 3")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each; default: 2")
    parser.add_argument(
        "--work", type=Path, default=Path("ablation_work"), help="finished runs are kept here"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "ablation.md", help="the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
