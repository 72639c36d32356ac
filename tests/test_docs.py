"""What the documents say is so: commands exist, pipelines parse, paths are there, code runs."""

import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mattecompress.backends.tvm.targets import find_target
from mattecompress.cli.app import app
from mattecompress.errors import UserError
from mattecompress.pipeline_text import parse_pipeline
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "console")
COMPLAINT = "mattecompress: "
FOLDERS = ("mattecompress", "passes", "backends", "examples", "tests", "docs", "benchmarks")
MADE_BY_READERS = ("passes/cap_relu.py", "tests/passes/test_cap_relu.py")


def blocks(page: Path, *kinds: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind in kinds]


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `mattecompress` in shell blocks and transcripts, but for those that fail on purpose."""
    for block in blocks(page, *SHELLS, "text"):
        lines = block.replace("\\\n", " ").splitlines()
        for line, answer in zip(lines, [*lines[1:], ""], strict=True):
            found = re.match(r"(?:\$ )?(?:\.venv/bin/)?mattecompress (.*)", line)
            if found and not answer.startswith(COMPLAINT):
                yield shlex.split(found[1].partition(" |")[0], comments=True)


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands(page)
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


def test_catalogue_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert made["CATALOGUE"].read_text() == made["catalogue"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text):
        assert (ROOT / path).exists() or path in MADE_BY_READERS, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)$", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def test_every_target_is_described() -> None:
    from mattecompress.backends.tvm.targets import TARGETS

    page = (ROOT / "docs" / "deploying-on-arm.md").read_text()
    assert [name for name in TARGETS if f"`{name}`" not in page] == []


def test_every_rule_is_described() -> None:
    from mattecompress.verify import RULES

    rules = re.findall(r"^\d\. ", (ROOT / "docs" / "text-form.md").read_text(), re.MULTILINE)
    assert len(rules) == len(RULES)


def test_the_drivers_words_are_described() -> None:
    page = (ROOT / "docs" / "deploying-on-arm.md").read_text()
    usage = re.search(
        r"USAGE\[\] =(.*?);\n", (ROOT / "backends/tvm/freestanding/driver.c").read_text(), re.DOTALL
    )
    assert usage is not None
    assert {word for word in re.findall(r"--[a-z]+", usage[1]) if word not in page} == set()


def test_the_pass_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tutorial_of_a_pass"
    (tmp_path / f"{name}.py").write_text("\n".join(blocks(ROOT / "docs" / "writing-a-pass.md", "python")))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 4
    for test in tests:
        test()


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
def test_python_and_c_of_the_pages_work(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    pytest.importorskip("ziglang")
    pages = [ROOT / "docs" / name for name in ("quick-start.md", "deploying-on-arm.md")]
    script = tmp_path / "pages.py"
    script.write_text("\n".join(block for page in pages for block in blocks(page, "python")))
    runpy.run_path(str(script), {"folder": tmp_path})
    (source,) = blocks(pages[-1], "c")
    (tmp_path / "main.c").write_text(source)
    (line,) = (line for block in blocks(pages[-1], "sh") for line in block.splitlines() if "zig cc" in line)
    command = [sys.executable, "-m", "ziglang", *shlex.split(line)[1:]]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "main").read_bytes()[:4] == b"\x7fELF"
    if shutil.which("qemu-aarch64"):
        emulated = ["qemu-aarch64", "-cpu", "cortex-a76", str(tmp_path / "main")]
        said = subprocess.run(emulated, check=True, capture_output=True, text=True).stdout
        assert re.fullmatch(r"\d+ bytes of memory, first alpha [01]\.\d+\n", said)
