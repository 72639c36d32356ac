"""The benchmark of tokens' memory: what its page says, what it runs and what it leaves out."""

import argparse
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mattecompress import container
from mattecompress.analysis.attention import find_attention
from mattecompress.analysis.memory import live_bytes
from tests.conftest import ROOT

pytest.importorskip("transformers")

SIZE = (256, 256)
SCRIPT = ROOT / "benchmarks" / "token_memory.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model="vitmatte-tiny", rows=["sdpa"], runs=1, work=tmp_path / "work", output=tmp_path / "page.md"
    )


class Pool:
    """Answers for the processes that draw, make and measure."""

    def __init__(self, measurement: Any) -> None:
        self.answers = {"draw_network": None, "make_program": (60.0, 900.0), "measure": measurement}
        self.asked: list[str] = []

    def submit(self, work: Callable[..., Any], *_: Any) -> Future[Any]:
        self.asked.append(work.__name__)
        future: Future[Any] = Future()
        future.set_result(self.answers[work.__name__])
        return future


@pytest.fixture
def pool(bench: dict[str, Any]) -> Pool:
    return Pool(bench["Measurement"](2.0, 400.0, 900.0))


def test_page_sets_rows_beside_eager_and_sdpa(bench: dict[str, Any], tmp_path: Path) -> None:
    def row(name: str, size: int, counted: float, *measured: float, again: Sequence[Any] = ()) -> Any:
        runs = [bench["Measurement"](*run) for run in (measured, *again) if run]
        return bench["Row"]("vitmatte-small", (size, size), name, counted, tuple(runs))

    rows = [
        row("eager", 1024, 760, 40, 400, 1200),
        row("sdpa", 1024, 300, 21, 400, 900, again=[(20, 400, 899), (19, 400, 898)]),
        row("eager", 2048, 9600),
        row("sdpa", 2048, 1000, 80, 400, 3400),
        row("mematte", 2048, 500, 30, 400, 1000),
    ]
    bench["write_page"](tmp_path / "page.md", rows, bench["PIPELINES"])
    page = (tmp_path / "page.md").read_text()
    assert "the runs of one row differ by up to 11 %" in page
    assert "| sdpa | 3 | 300 | 900 | 75.0% | 500 | 62.5% | 20.0 (19.0 to 21.0) | 50.0% | 100.0% |" in page
    assert (
        "| eager | 0 | 9600 | 10000 (computed) | 100.0% | 9600 (computed) | 100.0% | not run |  |  |" in page
    )
    assert "| mematte | 1 | 500 | 1000 | 10.0% | 600 | 6.2% | 30.0 |  | 37.5% |" in page
    assert (
        page.count("MiB of activations") == 1 and "760 MiB of activations, 95.0% of the measured 800." in page
    )


def test_measures_what_is_not_measured_yet(
    bench: dict[str, Any], options: argparse.Namespace, pool: Pool
) -> None:
    for rows in (["sdpa"], ["sdpa", "mematte"]):
        options.rows = rows
        bench["measure_size"](options, SIZE, pool)
    assert pool.asked.count("measure") == 2
    options.runs = 2
    bench["measure_size"](options, SIZE, pool)
    assert pool.asked.count("measure") == 4
    assert [row.name for row in bench["read_rows"](options.work, "vitmatte-tiny")] == ["sdpa", "mematte"]
    assert "## 256x256" in options.output.read_text()


def test_runs_nothing_that_may_take_too_much(
    bench: dict[str, Any],
    options: argparse.Namespace,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as little:
        little.setattr(bench["psutil"], "virtual_memory", lambda: SimpleNamespace(available=2**30))
        bench["measure_size"](options, SIZE, pool)
    assert "measure" not in pool.asked
    assert "sdpa: not run, for it may need 900 of the 1024 MiB" in capsys.readouterr().err
    assert "| sdpa | " in options.output.read_text() and "not run" in options.output.read_text()
    bench["measure_size"](options, SIZE, pool)
    assert pool.asked.count("measure") == 1, "it is tried again"


def test_two_maps_are_alive_at_most(bench: dict[str, Any], tmp_path: Path) -> None:
    bench["draw_network"]("vitmatte-tiny", SIZE, tmp_path / "plain.mcg")
    counted, needed = bench["make_program"]("eager", tmp_path / "plain.mcg", tmp_path / "eager.mcg")
    program = container.load(tmp_path / "eager.mcg")
    live, nodes = live_bytes(program), list(program.graph.nodes)
    one_map = 4 * 2 * (16 * 16) ** 2
    found = find_attention(program)
    assert len(found) == 4
    for attention in found:
        within = nodes[nodes.index(attention.query) : nodes.index(attention.result)]
        most = max(live.get(node.name, 0) for node in within)
        assert most <= counted * 2**20 < needed * 2**20
        assert 2 < (most - live[attention.query.name]) / one_map < 2.2


@pytest.mark.slow
def test_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "page.md")]
    words = [sys.executable, str(SCRIPT), "--model", "vitmatte-tiny", "--sizes", "256x256", *places]
    done = subprocess.run([*words, "--rows", "eager", "mematte"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(path.read_text()) for path in (tmp_path / "work").iterdir()]
    runs = [run for row in rows for run in row["runs"]]
    assert len(runs) == 2 and all(run["peak"] > run["held"] > 100 and run["seconds"] > 0 for run in runs)
