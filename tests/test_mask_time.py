"""The benchmark of BiVM's mask: thresholds that mark a wanted share, and what its table says."""

import runpy
from typing import Any

import pytest

import mattecompress as mc
from mattecompress.data.clips import procedural_clip
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "mask_time.py"))


def test_sets_the_share_that_is_wanted(bench: dict[str, Any]) -> None:
    program = mc.capture("bivm", size=(96, 160))
    frame = procedural_clip(3, 0, 1, 96, 160).frames
    before = bench["density"](program, frame)
    for share in (0.0, 0.3, 1.0):
        found = bench["density"](bench["with_share"](program, frame, share), frame)
        assert found.operations == pytest.approx(share, abs=0.05)
        assert share not in (0, 1) or found.operations == found.coarse == share
    assert bench["density"](program, frame) == before


def test_resized_masks_let_more_through(bench: dict[str, Any]) -> None:
    program = mc.capture("bivm", size=(96, 160))
    frame = procedural_clip(3, 0, 1, 96, 160).frames
    seen = bench["seen_by_mask"](program, frame)
    found = bench["density"](bench["marking"](program, seen, 0.2), frame)
    assert found.coarse == pytest.approx(0.2, abs=0.02)
    assert found.operations > found.coarse


def test_sets_time_beside_operations(bench: dict[str, Any]) -> None:
    timed, density = bench["Timed"], bench["Density"]
    rows = [
        timed(bench["PEER"], 100.0, None),
        timed("BiVM at 0.3", 20.0, density(0.3, 0.1)),
        timed("BiVM at 1", 40.0, density(1.0, 1.0)),
    ]
    assert bench["table"](rows) == [
        (bench["PEER"], "", "", "100.0", "1.00", "", ""),
        ("BiVM at 0.3", "0.30", "0.10", "20.0", "5.00", "0.50", "0.53"),
        ("BiVM at 1", "1.00", "1.00", "40.0", "2.50", "1.00", "1.00"),
    ]
