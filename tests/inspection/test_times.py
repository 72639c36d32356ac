"""Times of kernels at the nodes they compute, in tables, files and pages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mattecompress.inspection.page import Version, write_page
from mattecompress.inspection.rows import node_rows, select
from mattecompress.inspection.times import (
    FrameTimes,
    KernelTime,
    TimesError,
    node_times,
    read_times,
    time_kernels,
    write_times,
)
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.inspection.browser import Tab

pytest.importorskip("tvm", reason="the extra tvm is not installed")
CLIP = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def quantized(tiny: Program) -> Program:
    return parse_pipeline("mse{weights=8 activations=8}").run(tiny, Context(clips=[CLIP]))


@pytest.fixture(scope="module")
def times(quantized: Program) -> FrameTimes:
    return time_kernels(quantized, runs=2)


@pytest.fixture
def file(times: FrameTimes, tmp_path: Path) -> Path:
    write_times(tmp_path / "times.json", times)
    return tmp_path / "times.json"


def kernel(ms: float, limit: float, *nodes: str) -> KernelTime:
    return KernelTime("k", ms, limit, limit / ms, "memory", None, 0, 1, nodes, "")


def test_time_stands_at_the_leading_node() -> None:
    found = node_times([kernel(2.0, 1.0, "a", "b"), kernel(4.0, 2.0, "a"), kernel(1.0, 0.5, "c", "a", "b")])
    assert (found["a"].time_ms, found["a"].limit_ms, found["a"].of_limit) == (6.0, 3.0, 0.5)
    assert {name: each.time_at for name, each in found.items()} == {"a": "a,c", "b": "a,c", "c": "c"}
    assert found["b"].time_ms is None


def test_kernels_of_a_program_that_is_not_lowered(quantized: Program, times: FrameTimes) -> None:
    names = {node.name for node in quantized.operations()}
    assert all(each.nodes and names.issuperset(each.nodes) for each in times.kernels)
    layers = {row["name"] for row in node_rows(quantized) if row["macs"]}
    assert layers == {each.nodes[0] for each in times.kernels if each.products}
    assert {each.arithmetic for each in times.kernels if each.products} == {"int8"}
    assert all(each.region for each in times.kernels if each.products)


def test_rows_sum_up_to_the_kernels(quantized: Program, times: FrameTimes) -> None:
    rows = node_rows(quantized, times=node_times(times.kernels))
    assert sum(row["time_ms"] or 0 for row in rows) == pytest.approx(times.kernels_ms)
    assert sum(row["limit_ms"] or 0 for row in rows) == pytest.approx(
        sum(each.limit_ms for each in times.kernels)
    )
    slowest, *_ = select(rows, "of_limit<2 and time_ms>0", "time_ms")
    assert slowest["time_ms"] == max(row["time_ms"] or 0 for row in rows)
    least, *_ = select(rows, None, "of_limit")
    assert least["of_limit"] == min(row["of_limit"] for row in rows if row["of_limit"])
    assert select(rows, f"time_at={slowest['name']}", None)


def test_document(times: FrameTimes, file: Path, quantized: Program) -> None:
    document = json.loads(file.read_text())
    assert document == json.loads(json.dumps(times.as_json()))
    assert document.keys() >= {"format", "threads", "frame_ms", "kernels_ms", "products", "bytes", "kernels"}
    assert read_times(file, quantized) == node_times(times.kernels)


def test_of_another_program(file: Path, quantized: Program, tiny: Program) -> None:
    with pytest.raises(TimesError, match="the times of another program, 'tiny', not of this one"):
        read_times(file, tiny)
    changed = quantized.clone()
    changed.graph_module.get_parameter("head.bias").data += 1
    with pytest.raises(TimesError, match="another program"):
        read_times(file, changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernels", None),
        ("kernels", [7]),
        ("ms", 0.0),
        ("ms", float("nan")),
        ("ms", "fast"),
        ("nodes", ["absent"]),
        ("nodes", [["conv2d"]]),
        ("nodes", 3),
        ("more", 1),
    ],
)
def test_damaged(file: Path, quantized: Program, field: str, value: Any) -> None:
    document = json.loads(file.read_text())
    first, *others = document["kernels"]
    damaged = value if field == "kernels" else [first | {field: value}, *others]
    file.write_text(json.dumps(document | {"kernels": damaged}))
    with pytest.raises(TimesError, match="times.json is damaged: measure with"):
        read_times(file, quantized)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 10**5])
def test_no_document(tmp_path: Path, quantized: Program, text: str) -> None:
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(TimesError, match="measure with"):
        read_times(tmp_path / "times.json", quantized)
    with pytest.raises(TimesError, match="holds no times"):
        read_times(tmp_path / "absent.json", quantized)


def test_colours_the_page(times: FrameTimes, quantized: Program, tmp_path: Path, tab: Tab) -> None:
    path, known = tmp_path / "page.html", node_times(times.kernels)
    write_page(path, [Version("tiny", quantized, node_rows(quantized, times=known))])
    slowest = max(known, key=lambda name: known[name].time_ms or 0)
    other = next(name for name, each in known.items() if each.time_at == slowest)
    tab.open(f"{path.as_uri()}#v1-{other}")
    panel = tab.evaluate("facts.textContent")
    assert f"time_at{slowest}" in panel
    tab.evaluate("overlay.value = 'time_ms', overlay.dispatchEvent(new Event('change'))")
    share = (
        f"parseFloat(document.querySelector('[data-node=v1-{slowest}]').style.getPropertyValue('--share'))"
    )
    assert tab.evaluate(share) == 85
    tab.evaluate("overlay.value = 'of_limit', overlay.dispatchEvent(new Event('change'))")
    worst = min((name for name in known if known[name].of_limit), key=lambda name: known[name].of_limit or 0)
    assert tab.evaluate(share.replace(slowest, worst)) == 85
    sums = tab.evaluate("[...document.querySelectorAll('.sums')].map((each) => each.textContent).join()")
    assert " ms" in sums


def test_a_page_without_times_has_no_such_colours(quantized: Program, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [Version("tiny", quantized, node_rows(quantized))])
    assert 'value="time_ms"' not in (tmp_path / "page.html").read_text()
