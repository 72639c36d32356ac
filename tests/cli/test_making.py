import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mattecompress import container
from mattecompress.preparation import fix_size
from mattecompress.program import Program
from mattecompress.training import loop, recipes
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.recipes import Rates, Recipe, Stage
from tests.data.datasets.folders import backgrounds, videomatte

Cli = Callable[..., Any]

TINY = Recipe("rvm-mobilenetv3", (Stage(2, 1, 1, 64, 64, Rates(1e-3, 1e-3, 1e-3), bfloat16=False),))


def test_train_stops_and_goes_on(
    done: Cli, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    few = HeldOut(clips=1, frames=2, height=64, width=64)
    monkeypatch.setattr(loop, "train", functools.partial(loop.train, held_out=few))
    words = ["train", "--recipe", "tiny", "-o", "out", "--device", "cpu"]
    stopped = done(*words, "--stop-after", 1)
    assert stopped.out == ""
    assert "out: stopped after step 1 of 2; the same command goes on from here" in stopped.err
    other = cli(*words, "--seed", 1)
    assert other.code == 2 and "was made with another seed" in other.err
    finished = done(*words)
    assert "out/weights.safetensors: 2 steps, last loss" in finished.err
    assert len(json.loads((tmp_path / "out" / "record.json").read_text())["losses"]) == 2


def test_train_on_folders(done: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    few = HeldOut(clips=1, frames=2, height=64, width=64)
    monkeypatch.setattr(loop, "train", functools.partial(loop.train, held_out=few))
    videomatte(tmp_path / "set" / "train")
    backgrounds(tmp_path / "behind")
    done("train", "--recipe", "tiny", "-o", "out", "--data", "set/train", "--backgrounds", "behind")
    data = json.loads((tmp_path / "out" / "record.json").read_text())["data"]
    assert {kind: clips["clips"] for kind, clips in data.items()} == {"foregrounds": 2, "backgrounds": 2}


def test_compose_and_measure_all_of_it(done: Cli, tmp_path: Path, tiny_open: Program) -> None:
    videomatte(tmp_path / "front")
    backgrounds(tmp_path / "behind", stills=1, videos=1)
    words = ["compose", "front", "--backgrounds", "behind", "--clips", 3, "--frames", 4, "--size", "16x24"]
    made = done(*words, "-o", "set/motion")
    assert made.out == ""
    assert made.err == "set/motion: 3 clips of 4 frames, 16x24\n"
    assert len(list((tmp_path / "set/motion").glob("*/com/*.png"))) == 12
    container.save(fix_size(tiny_open, (16, 24)), tmp_path / "tiny.mcg")
    whole = json.loads(done("eval", "tiny.mcg", "--data", "set", "--json").out)
    assert whole["frames"] == 12
    assert all(value is not None for value in whole["metrics"].values())
    some = json.loads(
        done("eval", "tiny.mcg", "--data", "rvm:set", "--clips", 2, "--frames", 3, "--json").out
    )
    assert some["frames"] == 6
    done("opt", "tiny.mcg", "-p", "mse{weights=8 activations=8}", "--calibration", "set", "-o", "w8a8.mcg")


def test_compose_takes_a_format(done: Cli, tmp_path: Path) -> None:
    videomatte(tmp_path / "front")
    backgrounds(tmp_path / "behind")
    words = ["compose", "front", "--backgrounds", "behind", "--clips", 1, "--frames", 1, "-o", "set"]
    done(*words, "--format", "jpg")
    assert (tmp_path / "set" / "0000" / "com" / "0000.jpg").is_file()
