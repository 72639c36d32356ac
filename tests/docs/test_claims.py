"""What the pages say is so: commands exist, pipelines parse, what is listed is all there is."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer

from mattecompress.backends.tvm.targets import find_target
from mattecompress.cli.app import app
from mattecompress.errors import UserError
from mattecompress.modules import MODULES
from mattecompress.passes import PASSES
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import PLAIN
from tests.conftest import ROOT
from tests.docs.pages import DOCS, PAGES, blocks, title

COMPLAINT = "mattecompress: "


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `mattecompress` in shell blocks and transcripts, but for those that fail on purpose."""
    for block in blocks(page, "sh", "text"):
        for line, answer in block.steps:
            found = re.match(r"(?:\.venv/bin/)?mattecompress (.*)", line)
            if found and not (answer and answer[0].startswith(COMPLAINT)):
                yield shlex.split(found[1].partition(" |")[0], comments=True)


COMMANDS = [
    pytest.param(words, id=f"{title(page)}: {' '.join(words)}") for page in PAGES for words in commands(page)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words: list[str], request: pytest.FixtureRequest) -> None:
    verb, *arguments = words
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert verb in verbs
    if "--help" in arguments:
        return
    context = verbs[verb].make_context(verb, arguments)
    if pipeline := context.params.get("pipeline"):
        parse_pipeline(pipeline)
    if target := context.params.get("target"):
        find_target(target)


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 15


def test_the_complaint_is_real() -> None:
    page = (ROOT / "docs" / "quick-start.md").read_text()
    shown = re.search(rf"-p '(.*)'\n{COMPLAINT}(.*)\n", page)
    assert shown is not None
    with pytest.raises(UserError) as caught:
        parse_pipeline(shown[1])
    assert str(caught.value) == shown[2]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Callable[[], str]]:
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("generate").PAGES


def test_generated_pages_are_up_to_date(generated: dict[Path, Callable[[], str]]) -> None:
    for path, page in generated.items():
        assert path.read_text() == page(), "run `make docs`"


def test_each_pass_has_an_example(generated: dict[Path, Callable[[], str]]) -> None:
    samples = importlib.import_module("samples").SAMPLES
    assert samples.keys() == PASSES.keys()


def test_every_target_is_described() -> None:
    from mattecompress.backends.tvm.targets import TARGETS

    page = (ROOT / "docs" / "deploying-on-arm.md").read_text()
    assert [name for name in TARGETS if f"`{name}`" not in page] == []


def test_every_rule_is_described() -> None:
    from mattecompress.verify import RULES

    rules = re.findall(r"^\d\. ", (ROOT / "docs" / "text-form.md").read_text(), re.MULTILINE)
    assert len(rules) == len(RULES)


def test_every_kind_of_module_is_described() -> None:
    page = (ROOT / "docs" / "text-form.md").read_text()
    levels = dict(re.findall(r"^\| `(float|trainable|lowered)` \| (.*) \|$", page, re.MULTILINE))
    named = set(re.findall(r"`([^`]+)`", levels["float"] + levels["trainable"]))
    assert {f"{name}.default".replace("::", ".") for name in named if "::" in name} == PLAIN
    assert {name for name in named if "::" not in name} == set(MODULES)


def test_the_drivers_words_are_described() -> None:
    page = (ROOT / "docs" / "deploying-on-arm.md").read_text()
    usage = re.search(
        r"USAGE\[\] =(.*?);\n", (ROOT / "backends/tvm/freestanding/driver.c").read_text(), re.DOTALL
    )
    assert usage is not None
    assert {word for word in re.findall(r"--[a-z]+", usage[1]) if word not in page} == set()


def run_tutorial(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, prepare=lambda module: None
) -> None:
    """Import the Python of a page, and run its tests."""
    name = f"tutorial_of_{page.rpartition('-')[2]}"
    (folder / f"{name}.py").write_text(
        "\n".join(block.code for block in blocks(DOCS / f"{page}.md", "python"))
    )
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module(name)
    prepare(module)
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    assert len(tests) > 1
    for test in tests:
        test()


def test_the_pass_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tutorial("writing-a-pass", tmp_path, monkeypatch)


def test_the_kernel_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    from mattecompress.backends.tvm.importer import lowered
    from mattecompress.backends.tvm.importer import program as importer

    def make_known(module: ModuleType) -> None:
        operation = torch.ops.matte.shrink.default
        monkeypatch.setitem(lowered.EMITTERS, operation, module.emit_shrink)
        monkeypatch.setitem(importer.CONVERTERS, operation, lowered.convert)

    run_tutorial("writing-a-kernel", tmp_path, monkeypatch, make_known)


def test_the_bench_table_replaces_itself(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bench = runpy.run_path(str(ROOT / "benchmarks" / "frame_time.py"))
    times = {("float", "ours"): 20.0, ("float", "ncnn"): 30.0, ("rvm-react", "ours"): 10.0}
    document = {
        "model": "rvm",
        "size": [288, 512],
        "runs": 3,
        "machine": {"cpu": "some"},
        "versions": {"torch": "2"},
        "frames": [
            {"form": form, "runner": runner, "threads": 1, "median_ms": ms, "best_ms": ms, "worst_ms": ms}
            for (form, runner), ms in times.items()
        ],
    }
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    bench["write_readme"](readme, document)
    once = readme.read_text()
    assert "| float | ncnn | 1 | 30.0 | 33.3 | 1.50x |" in once
    assert "| rvm-react | ncnn, float | 1 | 30.0 | 33.3 | 3.00x |" in once
    bench["write_readme"](readme, document)
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(UserError, match="put them where the table goes"):
        bench["write_readme"](readme, document)


@pytest.mark.slow
def test_three_commands_tell_which_layers_hurt_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    page = DOCS / "inspecting.md"
    three, look, *_ = (block.code for block in blocks(page, "sh"))
    assert three.count("mattecompress ") == 3
    told, listed = (
        subprocess.run(["bash", "-ec", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        for code in (three, look)
    )
    table, listing, *_ = (block.code for block in blocks(page, "text"))
    worst = told.partition("the nodes that add most error")[2]
    shown, found = (re.findall(r"^│ (\w+)", text, re.MULTILINE) for text in (table, worst))
    assert shown == found[: len(shown)] and len(shown) == 4
    assert listing in listed
    assert (tmp_path / "difference.html").is_file() and (tmp_path / "history" / "index.json").is_file()
