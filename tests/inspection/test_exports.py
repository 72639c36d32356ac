import dataclasses
import importlib
import importlib.util
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mattecompress.inspection.error import measure_errors
from mattecompress.inspection.exports import DrawingError, dot_text, write_drawing, write_model_explorer
from mattecompress.inspection.rows import node_rows
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

CLIP = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def quantized(tiny: Program) -> Program:
    return parse_pipeline("mse{weights=4}").run(tiny, Context(clips=[CLIP]))


def test_dot_golden(golden: Any, quantized: Program) -> None:
    golden(dot_text(quantized))


@pytest.mark.needs("dot")
def test_graphviz_draws_it(quantized: Program, tmp_path: Path) -> None:
    write_drawing(quantized, tmp_path / "net.svg")
    assert "<svg" in (tmp_path / "net.svg").read_text()
    with pytest.raises(DrawingError, match="not recognized"):
        write_drawing(quantized, tmp_path / "net.nonsense")


def test_says_what_a_picture_needs(
    quantized: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_drawing(quantized, tmp_path / "net.dot")
    with pytest.raises(DrawingError, match="not on PATH"):
        write_drawing(quantized, tmp_path / "net.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["net.dot"]


def written(quantized: Program, tiny: Program, folder: Path) -> dict[str, Any]:
    rows = node_rows(quantized, measure_errors(quantized, tiny, [CLIP]))
    return {path.name: json.loads(path.read_text()) for path in write_model_explorer(quantized, rows, folder)}


def test_model_explorer(quantized: Program, tiny: Program, tmp_path: Path) -> None:
    files = written(quantized, tiny, tmp_path)
    (graph,) = files["graph.json"]["graphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) == len([*quantized.inputs, *quantized.operations()]) + 3
    assert {edge["sourceNodeId"] for node in nodes.values() for edge in node["incomingEdges"]} <= nodes.keys()
    data = files["own_sqnr.json"][graph["id"]]
    assert data["results"].keys() <= nodes.keys() and data["results"]
    assert all(isinstance(result["value"], float) for result in data["results"].values())
    assert files.keys() >= {"graph.json", "macs.json", "weight_bytes.json", "sqnr.json"}


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of Model Explorer's own package that declares its format; the rest of the package is not loaded."""
    found = importlib.util.find_spec("model_explorer")
    if found is None or not found.submodule_search_locations:
        pytest.skip("ai-edge-model-explorer is not installed")
    package = ModuleType("model_explorer")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return lambda name: importlib.import_module(f"model_explorer.{name}")


def check(value: Any, kind: Any, where: str) -> None:
    """Raise unless a value of JSON has the shape that a dataclass declares."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        needed = {
            each.name
            for each in dataclasses.fields(kind)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        }
        assert needed <= value.keys() <= hints.keys(), where
        for key, inner in value.items():
            check(inner, hints[key], f"{where}.{key}")
    elif origin is list:
        for place, inner in enumerate(value):
            check(inner, arms[0], f"{where}[{place}]")
    elif origin is dict:
        for key, inner in value.items():
            check(inner, arms[1], f"{where}.{key}")
    elif arms:
        plain = [arm for arm in arms if isinstance(arm, type) and isinstance(value, arm)]
        others = [arm for arm in arms if typing.get_origin(arm) or dataclasses.is_dataclass(arm)]
        assert plain or others, where
        if not plain:
            check(value, others[0], where)
    else:
        assert isinstance(value, kind), where


def test_model_explorer_in_the_form_its_package_declares(
    quantized: Program, tiny: Program, tmp_path: Path, declared: Callable[[str], Any]
) -> None:
    files = written(quantized, tiny, tmp_path)
    check(files.pop("graph.json"), declared("graph_builder").GraphCollection, "graph.json")
    for name, document in files.items():
        check(document, dict[str, declared("node_data_builder").GraphNodeData], name)
