import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mattecompress.inspection.difference import NodeDifference
from mattecompress.inspection.history import Line, load_history, merge
from mattecompress.inspection.history_page import history_document, write_history_page
from mattecompress.inspection.recording import Recorder, RecordError
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.inspection.browser import Tab


@pytest.fixture(scope="module")
def recorded(tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "history"
    pipeline = parse_pipeline(
        "canonicalize,fold-batch-norm,partition-blocks,binarize{method=react exclude=[]}"
    )
    recorder = Recorder(folder, tiny, pipeline)
    pipeline.run(tiny, Context(), after_each=[recorder])
    recorder.finish()
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(recorded, tmp_path / "history"))


def test_lines_of_two_texts() -> None:
    before = [
        "matte 1",
        "buffer @a f32[1] 00",
        "%x : f32[1] = input",
        "%y = f(%x)",
        "%z = g(%y)",
        "%w = h(%z)",
    ]
    after = [
        "matte 1",
        "buffer @a f32[1] 11",
        "%x : f32[1] = input",
        "%n = e(%x)",
        "%z = g(%n)",
        "%w = h(%z) r=1",
    ]
    nodes = [
        NodeDifference("changed", "", "", ("z",), ("z",), (), ()),
        NodeDifference("added", "", "", (), ("n",), (), ()),
        NodeDifference("removed", "", "", ("y",), (), (), ()),
    ]
    assert [*merge(before, after, nodes)] == [
        Line("matte 1"),
        Line("buffer @a f32[1] 00", "changed", gone=True),
        Line("buffer @a f32[1] 11", "changed"),
        Line("%x : f32[1] = input"),
        Line("%y = f(%x)", "removed", gone=True),
        Line("%n = e(%x)", "added"),
        Line("%z = g(%y)", "changed", gone=True),
        Line("%z = g(%n)", "changed"),
        Line("%w = h(%z) r=1", "noted"),
    ]


def test_a_line_that_stands_twice() -> None:
    lines = ["pass canonicalize seed=0", "pass canonicalize seed=0"]
    assert [*merge(lines[:1], lines, [])] == [Line(lines[0]), Line(lines[0], "added")]


def test_both_programs_stand_in_the_lines(recorded: Path) -> None:
    history = load_history(recorded)
    texts = [(recorded / step.facts["text"]).read_text().splitlines() for step in history.steps]
    for step, text in zip(history.steps, texts, strict=True):
        assert [line.text for line in step.lines if not line.gone] == text
    for step, text in zip(history.steps[1:], texts, strict=False):
        assert {line.text for line in step.lines if line.gone} <= {*text}


def test_marks_agree_with_the_difference(recorded: Path) -> None:
    for step in load_history(recorded).steps:
        for status in ("changed", "replaced", "added", "removed"):
            marked = [line for line in step.lines if line.mark == status and line.text.startswith("%")]
            for gone, side in ((True, "before"), (False, "after")):
                names = {name for node in step.nodes if node.status == status for name in getattr(node, side)}
                assert {line.text[1:].partition(" ")[0] for line in marked if line.gone is gone} == names


def test_texts_stand_once_in_the_document(recorded: Path) -> None:
    history = load_history(recorded)
    document = history_document(history)
    assert len(document["texts"]) == len(set(document["texts"]))
    for entry, step in zip(document["steps"], history.steps, strict=True):
        assert [document["texts"][number] for number in entry["lines"]] == [line.text for line in step.lines]
        assert [letter.isupper() for letter in entry["marks"]] == [line.gone for line in step.lines]


def _index(folder: Path, change: str, value: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["steps"][1][change] = value
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text", "../secret.txt"),
        ("text", "absent.txt"),
        ("difference", "/etc/hostname"),
        ("difference", None),
        ("seconds", "long"),
        ("seconds", 10**400),
        ("seconds", float("nan")),
        ("totals", []),
        ("totals", {"macs": 3}),
        ("number", None),
    ],
)
def test_refuses_what_is_damaged(folder: Path, key: str, value: object) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    _index(folder, key, value)
    with pytest.raises(RecordError, match="damaged or not whole"):
        load_history(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"nodes": 3}', '{"nodes": [{}]}', '{"nodes": [3]}', "[" * 99999])
def test_refuses_a_damaged_difference(folder: Path, text: str) -> None:
    (folder / "02-fold-batch-norm.json").write_text(text)
    with pytest.raises(RecordError, match="damaged or not whole"):
        history_document(load_history(folder))


def test_refuses_an_unknown_status(folder: Path) -> None:
    path = folder / "02-fold-batch-norm.json"
    path.write_text(path.read_text().replace('"replaced"', '"improved"'))
    with pytest.raises(RecordError, match="damaged or not whole"):
        load_history(folder)


def test_hostile_texts_stay_text(recorded: Path, tmp_path: Path) -> None:
    history, hostile = load_history(recorded), "</script><script>alert(1)</script>{{ 7 * 7 }}"
    given = replace(history.steps[0], lines=(Line(hostile),))
    write_history_page(tmp_path / "page.html", replace(history, program=hostile, steps=(given,)))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == 2 and "49" not in page.partition("<main>")[0].partition("<h1>")[2]


def test_the_page_plays_it(tab: Tab, recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.html"
    history = load_history(recorded)
    write_history_page(path, history)
    tab.open(path.as_uri())

    def shown() -> list[object]:
        return [
            tab.evaluate("document.querySelector('#steps [aria-current]').dataset.step"),
            tab.evaluate("document.querySelector('#step h2').textContent"),
            tab.evaluate("location.hash"),
        ]

    assert shown() == ["0", "as given", "#0"]
    tab.press("ArrowRight", "ArrowRight")
    assert shown() == ["2", "fold-batch-norm", "#2"]
    count = "document.getElementById('text').childElementCount"
    signs = "[...document.querySelectorAll('#text li')].map((line) => line.dataset.sign).join('')"
    changed = [line for line in history.steps[2].lines if line.mark == "replaced" and line.text[0] == "%"]
    assert tab.evaluate(signs) == ">" * len(changed)
    assert "was %conv2d, %stem_1, replaced by fold-batch-norm" in tab.evaluate("document.body.innerText")
    tab.press("d", "d")
    assert tab.evaluate(count) == len(history.steps[2].lines)
    tab.press("End")
    assert shown()[0] == str(len(history.steps) - 1)
    tab.press("Home", "ArrowLeft")
    assert shown()[0] == "0"
    tab.press("/", *"conv2d")
    assert tab.evaluate("search.value") == "conv2d"
    tab.press("Escape", " ")
    assert tab.evaluate("play.getAttribute('aria-pressed')") == "true"
    tab.press(" ")
    tab.evaluate("slider.value = 3, slider.dispatchEvent(new Event('input'))")
    assert shown() == ["3", "partition-blocks", "#3"]
    tab.open(f"{path.as_uri()}#1")
    assert shown()[1] == "canonicalize"
