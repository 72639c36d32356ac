import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mattecompress.training import loop, recipes
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.recipes import Rates, Recipe, Stage

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
