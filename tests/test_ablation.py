"""The ablation benchmark: budgets, what its page says, and a run of two steps that goes on after a stop."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mattecompress.errors import UserError
from mattecompress.models import build_model
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.training.state import save_weights
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "ablation.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "twin.safetensors"
    save_weights(build_model("bivm-32bit", untrained=True), path)
    return path


def page_of(bench: dict[str, Any], path: Path, errors: dict[str, list[float]]) -> str:
    plan = bench["Plan"]("400", 400, "", {})
    constant = {"mad": 200.0, "mse": 150.0, "dtssd": 5.0}
    constants = {"all_zero": constant, "mean_alpha": {**constant, "mad": 250}}
    results = [
        bench["Result"](name, seed, 60.0, {"network": {**constant, "mad": mad}, **constants} if mad else {})
        for name, found in errors.items()
        for seed, mad in enumerate(found, start=1)
    ]
    variants = bench["VARIANTS"]
    about = {name: variant.about for name, variant in variants.items()}
    bench["write_page"](path, plan, variants["bivm"].recipe(400), bench["HELD_OUT"], about, results)
    return path.read_text()


def test_page_tells_means_spreads_and_the_order(bench: dict[str, Any], tmp_path: Path) -> None:
    errors = {
        "rvm-bnn": [201.0],
        "rvm-recu": [0],
        "rvm-react": [99.0, 101.0],
        "bimatting": [79.0, 81.0],
        "bivm": [80.0, 81.0],
    }
    page = page_of(bench, tmp_path / "page.md", errors)
    assert "| rvm-react | RVM, learned thresholds, a scale a filter | 2 | 100.0 ± 1.4 | 150.0 ± 0.0 |" in page
    assert "320 of 4 clips of 1 frame at 96x160, then 80 of 4 clips of 2 frames at 96x160" in page
    assert "alpha 0 and the mean alpha, has a MAD of 200.0" in page
    assert "| 1 | diverged | diverged | diverged |" in page
    assert page.split("Here:\n\n")[1].splitlines() == [
        "- `rvm-recu` diverged in 1 of 1 runs.",
        "- `rvm-bnn` is no better than a constant answer.",
        "- `bimatting` against `rvm-react`: -20.0 of MAD, as in the paper, more than their spreads together.",
        "- `bivm` against `bimatting`: +0.5 of MAD, not as in the paper, no more than their spreads together.",
    ]


def test_budgets_are_steps_or_minutes(bench: dict[str, Any]) -> None:
    assert bench["read_budget"]("400") == (400, 0)
    assert bench["read_budget"]("1.5m") == (0, 1.5)
    for text in ("", "0", "12h", "-3", "0m"):
        with pytest.raises(UserError, match="expected steps, such as 400, or minutes"):
            bench["read_budget"](text)


@torch.no_grad()
def test_the_dense_variant_has_a_mask_of_ones(bench: dict[str, Any]) -> None:
    network = bench["VARIANTS"]["bivm-dense"].network(1)
    (mask,) = (part for part in network.module.modules() if isinstance(part, SpatialMask))
    assert mask(torch.randn(2, 1, 6, 10)).eq(1).all()


def test_equal_seeds_begin_equal(bench: dict[str, Any]) -> None:
    one, same, other = (bench["VARIANTS"]["bivm"].network(seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "backbone.joins.0.whole.factor"
    assert one[name] != other[name]


@pytest.mark.slow
def test_goes_on_after_a_stop(teacher: Path, tmp_path: Path) -> None:
    def run(*variants: str, budget: str = "2") -> subprocess.CompletedProcess[str]:
        places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "page.md")]
        options = ["--teacher", str(teacher), "--budget", budget, "--seeds", "1", *places]
        command = [sys.executable, str(SCRIPT), *options, "--variants", *variants]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("rvm-react").returncode == 0
    kept = tmp_path / "work" / "run-rvm-react-1.json"
    assert json.loads(kept.read_text())["scores"]["network"]["mad"] > 0
    before = kept.stat().st_mtime_ns
    again = run("rvm-react", "bivm")
    assert again.returncode == 0, again.stderr
    assert "rvm-react, seed" not in again.stderr and "bivm, seed 1: MAD" in again.stderr
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "page.md").read_text().count("| 1 |") == 2
    other = run("bivm", budget="3")
    assert other.returncode == 2 and "begun with another budget" in other.stderr
