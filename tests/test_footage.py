"""The clips of the post-training benchmark."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

SIZE = (48, 80)


@pytest.fixture(scope="module")
def footage() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "footage.py"))


def test_composites_are_exact_and_come_from_the_seed(footage: dict[str, Any], shared_data: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    one, again, other = (footage["composites"](shared_data, [4], 3, SIZE, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.frames, again.frames) and torch.equal(one.alpha, again.alpha)
    assert not torch.equal(one.frames, other.frames)
    assert one.frames.shape == (3, 3, *SIZE) and one.alpha.shape == (3, 1, *SIZE)
    opaque = (one.alpha == 1).expand_as(one.frames)
    assert opaque.any() and torch.equal(one.frames[opaque], one.foreground[opaque])
    assert not torch.equal(one.alpha[0], one.alpha[2]), "it moves"


def test_nothing_is_in_both_halves(footage: dict[str, Any]) -> None:
    assert not set(footage["CALIBRATION"]) & set(footage["TEST"])
    assert 2 * footage["VIDEO_FRAMES"] == 96 and footage["VIDEO_FRAMES"] % footage["PIECE"] == 0
