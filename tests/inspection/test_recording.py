import json
from pathlib import Path

import pytest

from mattecompress.inspection.recording import Recorder, RecordError, read_history
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program

PIPELINE = parse_pipeline("canonicalize,fold-batch-norm,partition-blocks")


def test_records_each_pass(tiny: Program, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    recorder = Recorder(folder, tiny, PIPELINE)
    assert [step["number"] for step in read_history(folder)["steps"]] == [0]
    result = PIPELINE.run(tiny, after_each=[recorder])
    assert read_history(folder)["finished"] is False
    recorder.finish()
    index = read_history(folder)
    assert index["finished"] and index["pipeline"] == str(PIPELINE)
    assert [step["pass"] for step in index["steps"]] == ["", *map(str, PIPELINE.passes)]
    assert [step["modified"] for step in index["steps"]] == [False, False, True, True]
    assert (folder / index["steps"][-1]["text"]).read_text() == print_program(result)
    difference = json.loads((folder / index["steps"][2]["difference"]).read_text())
    assert [each["maker"] for each in difference["nodes"]] == ["fold-batch-norm"]
    assert index["steps"][2]["totals"]["size_mib"] < index["steps"][1]["totals"]["size_mib"]


def test_takes_the_place_of_an_earlier_history(tiny: Program, tmp_path: Path) -> None:
    for pipeline in (PIPELINE, parse_pipeline("canonicalize")):
        recorder = Recorder(tmp_path, tiny, pipeline)
        pipeline.run(tiny, after_each=[recorder])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-given.txt",
        "01-canonicalize.json",
        "01-canonicalize.txt",
        "index.json",
    ]


def test_leaves_other_folders_alone(tiny: Program, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecordError, match="holds no history"):
        Recorder(tmp_path, tiny, PIPELINE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "steps": [3]}', "[" * 99999, "\x00"],
)
def test_refuses_what_is_no_history(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(RecordError):
        read_history(tmp_path)
