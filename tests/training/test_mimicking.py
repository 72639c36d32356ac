"""A one-bit student that mimics its float twin in the training loop."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mattecompress.models import build_model
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.training.beginning import build_network
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.loop import Run, train
from mattecompress.training.losses import evolution_loss, matting_loss, mimicking_loss
from mattecompress.training.network import ProgramNetwork, resized
from mattecompress.training.objective import clip_loss, crossing_factors
from mattecompress.training.recipes import HighPass, Rates, Recipe, Stage
from mattecompress.training.state import TrainingError, save_weights
from mattecompress.training.world import World
from tests.processes import kill_at, start, train_together

RATES = Rates(1e-4, 2e-4, 2e-4)
FIRST = Stage(2, 2, 2, 64, 64, RATES, bfloat16=False, mimicking=1e-4, evolution=1e-4)
TINY = Recipe(
    model="bivm",
    stages=(FIRST, Stage(1, 1, 2, 64, 80, RATES, bfloat16=False)),
    clip_norm=1.0,
    packed=True,
    teacher="bivm-32bit",
    coarse=0.25,
)
FEW = HeldOut(clips=1, frames=2, height=64, width=64)
ALONE = World(0, 1, "cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_weights(build_model("bivm-32bit", untrained=True), path)
    return path


@pytest.fixture(scope="module")
def whole_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory):
    return train(TINY, tmp_path_factory.mktemp("whole"), seed=3, teacher=teacher, held_out=FEW, quiet=True)


def test_goes_on_exactly_where_it_stopped(whole_run, teacher: Path, tmp_path: Path) -> None:
    for steps in (1, 2):
        assert train(TINY, tmp_path, seed=3, teacher=teacher, stop_after=steps, quiet=True) is None
    resumed = train(TINY, tmp_path, seed=3, teacher=teacher, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses
    assert resumed.weights.read_bytes() == whole_run.weights.read_bytes()


@pytest.mark.slow
def test_goes_on_after_kill(whole_run, teacher: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.training.test_mimicking import TINY, FEW; "
        "from mattecompress.training.loop import train; "
        f"train(TINY, Path({str(tmp_path)!r}), seed=3, teacher=Path({str(teacher)!r}), save_every=1, "
        "held_out=FEW, quiet=True)"
    )
    kill_at("checkpoint-*", tmp_path, start("-c", script))
    resumed = train(TINY, tmp_path, seed=3, teacher=teacher, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses


def test_result_is_a_checkpoint_that_names_its_teacher(whole_run) -> None:
    fgr, pha, *_ = build_model("bivm", whole_run.weights)(torch.rand(1, 3, 64, 64))
    assert fgr.isfinite().all() and pha.isfinite().all()
    assert whole_run.weights.stat().st_size < 800_000
    record = json.loads(whole_run.record.read_text())
    assert record["taught_by"]["file"] == "weights.safetensors"
    assert record["recipe"]["stages"][0]["mimicking"] == 1e-4


def test_wants_a_teacher_just_where_the_recipe_does(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="recipe tiny learns from a teacher: give trained weights of bivm-32bit"
    ):
        train(TINY, tmp_path, name="tiny", quiet=True)
    alone = replace(TINY, teacher="", stages=TINY.stages[1:])
    with pytest.raises(TrainingError, match="learns from nobody"):
        train(alone, tmp_path, teacher=teacher, quiet=True)


def test_refuses_another_teacher_in_the_folder(teacher: Path, tmp_path: Path) -> None:
    train(TINY, tmp_path, seed=3, teacher=teacher, stop_after=1, quiet=True)
    other = tmp_path / "other.safetensors"
    save_weights(build_model("bivm-32bit", untrained=True), other)
    with pytest.raises(TrainingError, match="another teacher"):
        train(TINY, tmp_path, seed=3, teacher=other, quiet=True)


def test_the_loss_is_the_sum_of_its_terms(teacher: Path) -> None:
    network, guide = build_network("bivm", 0, None), build_network("bivm-32bit", 0, teacher)
    run = Run(TINY, 3, ALONE, network, teacher=guide)
    batch = run.source.batch("matting", 0, 2, 2, 64, 64)
    answer, taught = network.answer(batch.frames), guide.features(batch.frames)
    small = [resized(clip, answer.coarse[0]) for clip in (batch.foreground, batch.alpha)]
    factors = crossing_factors(network.module)
    expected = (
        matting_loss(answer.foreground, answer.alpha, batch.foreground, batch.alpha)["total"]
        + 0.25 * matting_loss(*answer.coarse, *small, levels=1)["total"]
        + 1e-4 * mimicking_loss(answer.features, taught, answer.mask)
        + 1e-4 * evolution_loss(factors)
    )
    assert len(factors) == 10
    torch.testing.assert_close(clip_loss(TINY, FIRST, batch, answer, taught, network.module), expected)


def test_says_what_a_network_lacks() -> None:
    network = build_network("rvm-mobilenetv3", 0, None)
    run = Run(TINY, 3, ALONE, network)
    batch = run.source.batch("matting", 0, 1, 1, 64, 64)
    answer = network.answer(batch.frames)
    with pytest.raises(TrainingError, match="tap them with attach-mimicking"):
        clip_loss(TINY, FIRST, batch, answer, (), network.module)
    with pytest.raises(TrainingError, match="a recipe without evolution"):
        clip_loss(TINY, replace(FIRST, mimicking=0.0), batch, answer, (), network.module)


def test_teacher_stays_as_it_is(teacher: Path) -> None:
    guide = build_network("bivm-32bit", 0, teacher)
    before = {name: value.clone() for name, value in guide.module.state_dict().items()}
    Run(TINY, 3, ALONE, build_network("bivm", 0, None), teacher=guide).advance()
    assert all(torch.equal(before[name], value) for name, value in guide.module.state_dict().items())
    assert not guide.module.training


def test_paper_stages_train_the_refiner_and_segmentation_too(tmp_path: Path) -> None:
    high = HighPass(1, 128, 128, 0.5)
    stage = Stage(
        1, 1, 1, 64, 64, Rates(1e-5, 1e-5, 5e-5, 2e-4), high=high, segmentation=True, bfloat16=False
    )
    recipe = Recipe("bivm", (stage,), coarse=0.25)
    result = train(recipe, tmp_path, held_out=FEW, quiet=True)
    assert len(build_model("bivm", result.weights)(torch.rand(1, 3, 64, 64), downsample_ratio=0.5)) == 8


def tapped(pipeline: str, rvm: Program) -> Program:
    return parse_pipeline(f"{pipeline},attach-mimicking").run(rvm)


@pytest.mark.slow
def test_programs_mimic_programs(rvm: Program, tmp_path: Path) -> None:
    """Student and teacher from one RVM; the taps are there for the loop and come off again."""
    recipe = replace(TINY, stages=(replace(FIRST, steps=1, batch=1, height=64, width=96),))
    student, twin = tapped("bivm", rvm), tapped("bivm{bits=32}", rvm)
    before = student.clone().state_dict()
    assert len(crossing_factors(student.graph_module)) == 10
    train(
        recipe,
        tmp_path,
        network=ProgramNetwork(student),
        teacher=ProgramNetwork(twin),
        held_out=replace(FEW, width=96),
        quiet=True,
    )
    moved = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    parts = {"backbone", "aspp", "decoder", "project_mat", "sparsifier"}
    assert parts <= {name.partition(".")[0] for name in moved}
    assert "sparsifier.conv.weight" in moved
    assert parse_pipeline("attach-mimicking{remove=true}").run(student).output_names == rvm.output_names


@pytest.mark.slow
def test_a_few_dozen_steps_lower_the_loss(teacher: Path) -> None:
    """On clips that no step sees; the matte's own loss, since a teacher of random weights is no help to it."""
    steps = replace(FIRST, steps=40, batch=4, frames=1, rates=Rates(1e-3, 2e-3, 2e-3))
    network, guide = build_network("bivm", 0, None), build_network("bivm-32bit", 0, teacher)
    run = Run(replace(TINY, stages=(steps,)), 3, ALONE, network, teacher=guide)
    batch = run.source.batch("matting", 1000, 8, 1, 64, 64)

    def loss() -> float:
        answer = network.answer(batch.frames)
        plain = replace(steps, mimicking=0.0, evolution=0.0)
        return clip_loss(TINY, plain, batch, answer, (), network.module).item()

    before = loss()
    for _ in range(40):
        run.advance()
    assert loss() < 0.9 * before


@pytest.mark.slow
def test_processes_of_torchrun_train_one_network(teacher: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from tests.training.test_mimicking import TINY, FEW\n"
        "from mattecompress.training.loop import train\n"
        f"train(TINY, Path({str(tmp_path / 'out')!r}), seed=3, teacher=Path({str(teacher)!r}), device='cpu', "
        "held_out=FEW, quiet=True)\n"
    )
    train_together(code, tmp_path)
    assert json.loads((tmp_path / "out" / "record.json").read_text())["processes"] == 2
    assert build_model("bivm", tmp_path / "out" / "weights.safetensors")
