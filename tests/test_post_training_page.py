"""The page on post-training quantization: what it says of the order of methods."""

import runpy
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "post_training_page.py"))


def rows(page: dict[str, Any], method: str, errors: dict[int, float]) -> list[Any]:
    """One for each seed."""
    scores = {seed: dict.fromkeys(page["METRICS"], error) for seed, error in errors.items()}
    return [
        page["Row"]((144, 256), seed, "w4a8", method, "passes", video, 1.0, 2.0, 3.0, "AMD EPYC", 1)
        for seed, video in scores.items()
    ]


def test_compares_methods_over_the_seeds_that_both_have(page: dict[str, Any]) -> None:
    measured = [
        *rows(page, "qdrop", {0: 10.0, 2: 100.0}),
        *rows(page, "qdrop equalized", {0: 8.0, 1: 100.0}),
        *rows(page, "qdrop+GAC", {0: 6.0}),
        *rows(page, "ptq4vm", {0: 5.0, 2: 100.0}),
    ]
    assert list(page["order_lines"](page["group_rows"](measured))) == [
        "W4A8 at 144x256: MAD of `qdrop equalized` 20.0% below `qdrop`.",
        "W4A8 at 144x256: MAD of `qdrop+GAC` 25.0% below `qdrop equalized`.",
        "W4A8 at 144x256: MAD of `ptq4vm` 16.7% below `qdrop+GAC`.",
        "W4A8 at 144x256: MAD of `ptq4vm` 37.5% below `qdrop equalized`.",
        "W4A8 at 144x256: MAD of `ptq4vm` 4.5% below `qdrop`.",
        "W4A8 at 144x256: the flow term changes dtSSD by -16.7%.",
    ]


def test_compares_nothing_without_a_shared_seed(page: dict[str, Any]) -> None:
    measured = [*rows(page, "brecq", {0: 8.0}), *rows(page, "qdrop", {1: 4.0})]
    assert not list(page["order_lines"](page["group_rows"](measured)))
