"""The training loop on recipes of a few tiny steps."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mattecompress.data.datasets.footage import open_backgrounds
from mattecompress.data.datasets.layouts import open_dataset
from mattecompress.data.datasets.mixing import MixedClips
from mattecompress.models import build_model, shipped_checkpoint
from mattecompress.training.evaluation import HELD_OUT_SEED, HeldOut
from mattecompress.training.loop import origin, train
from mattecompress.training.recipes import HighPass, Rates, Recipe, Stage
from mattecompress.training.state import TrainingError
from tests.data.datasets.folders import backgrounds, videomatte
from tests.processes import kill_at, start, train_together

HIGH = HighPass(1, 128, 128, 0.5)
TINY = Recipe(
    model="rvm-mobilenetv3",
    stages=(
        Stage(2, 2, 2, 64, 64, Rates(1e-3, 1e-3, 1e-3), fade=0.5, span=3),
        Stage(1, 1, 2, 64, 64, Rates(1e-4, 1e-4, 1e-4), freeze_norms=True),
        Stage(2, 2, 0, 64, 64, Rates(0, 0, 0, 1e-3), high=HIGH, freeze_norms=True, bfloat16=False),
    ),
    warmup=2,
    weight_decay=1e-2,
    clip_norm=1.0,
    average=0.9,
    half=True,
)
FEW = HeldOut(clips=1, frames=2, height=64, width=64)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("whole")
    return train(TINY, out, seed=3, held_out=FEW, quiet=True)


def test_goes_on_exactly_where_it_stopped(whole_run, tmp_path: Path) -> None:
    for steps in (1, 2, 4):
        assert train(TINY, tmp_path, seed=3, save_every=1, stop_after=steps, held_out=FEW, quiet=True) is None
    resumed = train(TINY, tmp_path, seed=3, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses
    assert resumed.weights.read_bytes() == whole_run.weights.read_bytes()


def test_goes_on_after_kill(whole_run, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.training.test_loop import TINY, FEW; "
        "from mattecompress.training.loop import train; "
        f"train(TINY, Path({str(tmp_path)!r}), seed=3, save_every=1, held_out=FEW, quiet=True)"
    )
    kill_at("checkpoint-*", tmp_path, start("-c", script))
    resumed = train(TINY, tmp_path, seed=3, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses


def test_result_is_a_checkpoint_with_a_record(whole_run) -> None:
    model = build_model("rvm-mobilenetv3", whole_run.weights)
    assert len(model(torch.rand(1, 3, 64, 64), downsample_ratio=0.5)) == 6
    record = json.loads(whole_run.record.read_text())
    assert record["seed"] == 3
    assert len(record["losses"]) == record["steps"] == TINY.steps
    assert record["held_out"]["seed"] == HELD_OUT_SEED
    assert record["held_out"]["network"].keys() == {"mad", "mse", "dtssd"}
    assert record["recipe"]["stages"][2]["high"]["ratio"] == 0.5


def test_a_record_tells_where_a_run_began(whole_run, tmp_path: Path) -> None:
    began = origin(whole_run.weights)
    assert began["file"] == "weights.safetensors"
    assert began["sha256"] == hashlib.sha256(whole_run.weights.read_bytes()).hexdigest()
    assert began["record"] == json.loads(whole_run.record.read_text())
    assert began["record"]["begins_with"] is None
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(whole_run.weights.read_bytes())
    assert origin(alone)["record"] is None
    assert origin(shipped_checkpoint("rvm-mobilenetv3"))["record"]["held_out"]["seed"] == HELD_OUT_SEED


@pytest.mark.parametrize("text", [b"no table", b"\xff", b"[" * 100000], ids=["text", "bytes", "deep"])
def test_names_a_damaged_record_before_it_trains(whole_run, tmp_path: Path, text: bytes) -> None:
    weights, out = tmp_path / "begin.safetensors", tmp_path / "out"
    weights.write_bytes(whole_run.weights.read_bytes())
    weights.with_suffix(".json").write_bytes(text)
    with pytest.raises(TrainingError, match=r"begin\.json: holds no record"):
        train(TINY, out, checkpoint=weights, seed=3, held_out=FEW, quiet=True)
    assert not out.exists()


def test_leaves_out_what_was_not_trained(whole_run) -> None:
    model = build_model("rvm-mobilenetv3", whole_run.weights)
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        "backbone",
        "aspp",
        "decoder",
        "project_mat",
        "refiner",
    }


def test_frozen_stages_move_only_their_part(tmp_path: Path) -> None:
    def weights(steps: int) -> dict[str, torch.Tensor]:
        train(TINY, tmp_path, seed=3, stop_after=steps, held_out=FEW, quiet=True)
        (path,) = tmp_path.glob("checkpoint-*/average.safetensors")
        return safetensors.torch.load_file(path)

    before, after = weights(3), weights(5)
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"refiner"}


def test_segmentation_is_trained_where_a_stage_asks(tmp_path: Path) -> None:
    recipe = replace(TINY, stages=(replace(TINY.stages[0], steps=1, segmentation=True),))
    result = train(recipe, tmp_path, held_out=FEW, quiet=True)
    kept = {name.partition(".")[0] for name in safetensors.torch.load_file(result.weights)}
    assert "project_seg" in kept
    assert "refiner" not in kept


def test_refuses_another_run_in_the_folder(tmp_path: Path) -> None:
    train(TINY, tmp_path, seed=3, stop_after=1, quiet=True)
    with pytest.raises(TrainingError, match="another seed"):
        train(TINY, tmp_path, seed=4, quiet=True)
    with pytest.raises(TrainingError, match="another recipe"):
        train(replace(TINY, warmup=5), tmp_path, seed=3, quiet=True)


def test_refuses_another_checkpoint_in_the_folder(whole_run, tmp_path: Path) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "out"
    tensors = safetensors.torch.load_file(whole_run.weights)
    safetensors.torch.save_file({name: value * 0.5 for name, value in tensors.items()}, other)
    train(TINY, out, checkpoint=whole_run.weights, seed=3, stop_after=1, quiet=True)
    for checkpoint in (other, None):
        with pytest.raises(TrainingError, match="another checkpoint;"):
            train(TINY, out, checkpoint=checkpoint, seed=3, quiet=True)
    assert train(TINY, out, checkpoint=whole_run.weights, seed=3, stop_after=2, quiet=True) is None


def test_goes_on_where_no_checkpoint_was_noted(tmp_path: Path) -> None:
    train(TINY, tmp_path, seed=3, stop_after=1, quiet=True)
    (path,) = tmp_path.glob("checkpoint-*/progress.json")
    progress = json.loads(path.read_text())
    del progress["run"]["checkpoint"]
    path.write_text(json.dumps(progress))
    assert train(TINY, tmp_path, seed=3, stop_after=2, quiet=True) is None


def test_a_run_on_folders_goes_on_exactly(tmp_path: Path) -> None:
    def mixed(name: str) -> MixedClips:
        front, behind = videomatte(tmp_path / name / "front"), backgrounds(tmp_path / name / "behind", 1, 1)
        return MixedClips(open_dataset(str(front)).foregrounds, open_backgrounds(behind))

    recipe = replace(TINY, average=0.0, stages=(replace(TINY.stages[0], steps=2, batch=1),))
    options = {"seed": 3, "held_out": FEW, "quiet": True}
    whole = train(recipe, tmp_path / "whole", data=mixed("here"), **options)
    assert train(recipe, tmp_path / "out", data=mixed("here"), stop_after=1, **options) is None
    with pytest.raises(TrainingError, match="another data;"):
        train(recipe, tmp_path / "out", **options)
    resumed = train(recipe, tmp_path / "out", data=mixed("there"), **options)
    assert resumed.losses == whole.losses
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert json.loads(whole.record.read_text())["data"] == mixed("here").identity


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no pickle"),
        lambda path: torch.save([1], path),
        lambda path: torch.save({"state": {}, "param_groups": 3}, path),
    ],
    ids=["cut", "empty", "text", "list", "groups"],
)
def test_names_a_damaged_checkpoint(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    train(TINY, tmp_path, seed=3, stop_after=1, quiet=True)
    (path,) = tmp_path.glob("checkpoint-*/optimizer.pt")
    spoil(path)
    with pytest.raises(TrainingError, match="damaged checkpoint"):
        train(TINY, tmp_path, seed=3, quiet=True)


def test_held_out_clips_are_never_trained_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="held-out"):
        train(TINY, tmp_path, seed=HELD_OUT_SEED, quiet=True)


def test_divergence_stops_the_run(tmp_path: Path) -> None:
    wild = replace(TINY, stages=(replace(TINY.stages[0], rates=Rates(1e30, 1e30, 1e30)),), clip_norm=0.0)
    with pytest.raises(TrainingError, match="lower the rates"):
        train(wild, tmp_path, seed=3, quiet=True)


@pytest.mark.slow
def test_processes_of_torchrun_train_one_network(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from tests.training.test_loop import TINY, FEW\n"
        "from mattecompress.training.loop import train\n"
        f"record = train(TINY, Path({str(tmp_path / 'out')!r}), seed=3, device='cpu', held_out=FEW, quiet=True)\n"
        f"Path({str(tmp_path)!r}, f'losses-{{os.environ[\"RANK\"]}}').write_text(str(record.losses))\n"
    )
    train_together(code, tmp_path)
    assert json.loads((tmp_path / "out" / "record.json").read_text())["processes"] == 2
    assert (tmp_path / "losses-0").read_text() != (tmp_path / "losses-1").read_text()
    assert build_model("rvm-mobilenetv3", tmp_path / "out" / "weights.safetensors")
