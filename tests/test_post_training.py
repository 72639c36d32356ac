"""The benchmark of post-training methods: how they build on each other, and which rows stay."""

import argparse
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "post_training.py"))


def options(folder: Path, **changed: Any) -> argparse.Namespace:
    usual = {
        "recipe": "fast",
        "iterations": 60,
        "epochs": 6,
        "size": (144, 256),
        "rows": folder / "rows.json",
    }
    return argparse.Namespace(**usual | changed)


def test_methods_go_on_from_one_another(bench: dict[str, Any], tmp_path: Path) -> None:
    for method, start in bench["STARTS"].items():
        if start:
            text, first = (bench["pipeline"](name, "w4a4", options(tmp_path)) for name in (method, start))
            assert text.startswith(f"{first},")


def test_rows_stay_until_their_method_stands_for_something_else(
    bench: dict[str, Any], tmp_path: Path
) -> None:
    passes = bench["pipeline"]("qdrop", "w4a4", options(tmp_path))
    row = bench["Row"]((144, 256), 1, "w4a4", "qdrop", passes, {"mad": 3.0}, 4.0, 5.0, 6.0, "AMD EPYC", 1)
    rows = bench["Rows"](options(tmp_path))
    assert not rows.have(1, "w4a4", "qdrop")
    rows.keep(row)
    rows.keep(replace(row, video={"mad": 2.0}))
    again = bench["Rows"](options(tmp_path))
    assert again.current == [replace(row, video={"mad": 2.0})]
    assert again.have(1, "w4a4", "qdrop")
    assert not again.have(0, "w4a4", "qdrop")
    assert not bench["Rows"](options(tmp_path, size=(288, 512))).have(1, "w4a4", "qdrop")
    assert not bench["Rows"](options(tmp_path, iterations=70)).current


def test_seconds_before_a_stop_count(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 10.0, 10.0, 10.0, 50.0, 51.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    stopped = bench["Meter"](tmp_path / "spent.json")
    stopped.note(1, 9, "early")
    assert not (tmp_path / "spent.json").exists()
    stopped.note(2, 9, "late")
    assert bench["Meter"](tmp_path / "spent.json").effort.seconds == 11
