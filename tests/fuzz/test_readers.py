"""Whatever is read from outside is read, or refused in one clear line: no traceback, no unbounded memory."""

import dataclasses
import io
import json
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

from mattecompress import container
from mattecompress.analysis.cost import cost
from mattecompress.cli.recordings import print_history
from mattecompress.errors import InternalError, UserError
from mattecompress.inspection.history import load_history
from mattecompress.inspection.history_page import history_document
from mattecompress.inspection.recording import Recorder
from mattecompress.models.checkpoints import CheckpointError, read_checkpoint
from mattecompress.named_pipelines import PIPELINES
from mattecompress.passes import PASSES
from mattecompress.pipeline_text import load_pass, parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from mattecompress.verify import VerifyError, verify
from tests.fuzz.limits import limited
from tests.fuzz.mutations import HOSTILE, archive, damaged, spoilt

fuzzed = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MIB = 2**20


def refused_or(read: Callable[[], Any]) -> Any:
    """What is read, within the limits; None where it is refused."""
    try:
        with limited():
            found = read()
    except UserError as error:
        assert str(error).strip()
        event(f"refused: {type(error).__name__}") if currently_in_test_context() else None
        return None
    event("read") if currently_in_test_context() else None
    return found


@pytest.fixture(scope="module")
def lowered(tiny: Program) -> Program:
    return parse_pipeline("canonicalize,partition-blocks,binarize{method=react},lower").run(tiny)


@pytest.fixture(scope="module")
def members(tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "tiny.mcg"
    container.save(parse_pipeline("fold-batch-norm").run(tiny), path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@fuzzed
@given(st.data())
def test_the_text_of_a_program(tiny: Program, lowered: Program, data: st.DataObject) -> None:
    program = data.draw(st.sampled_from([tiny, lowered]))
    text = data.draw(damaged(print_program(program)))

    def read() -> None:
        found = parse_program(text, program.state_dict())
        try:
            verify(found)
        except VerifyError:
            return
        try:
            cost(found)
        except InternalError:
            return
        print_program(found)

    refused_or(read)


WORDS = (
    "mse", "quantize", "lower", "{", "}", "[", "]", ",", "=", " ", "weights", "rules", "exclude", "w4a8", "none",
    "true", "-1", "1e99", "9" * 5000, "'", "*", "\n", "decoder.*:w4", "iterations", "method=bnn", "{}",
)  # fmt: skip


VALUES = (
    "1", "4", "8", "true", "none", "[]", "[a.*:w4a8,b]", "[a:w99]", "[[", "'", "x", "-1", "1e999", "nan", "9" * 5000,
)  # fmt: skip


@st.composite
def options(draw: st.DrawFn) -> str:
    """A pass or a named pipeline with some of its own options, well spelled or not."""
    name = draw(st.sampled_from([*PASSES, *PIPELINES]))
    fields = dataclasses.fields(PIPELINES[name] if name in PIPELINES else load_pass(name))
    keys = [field.name.replace("_", "-") for field in fields] or ["none"]
    given = draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(VALUES), max_size=3))
    return f"{name}{{{' '.join(f'{key}={value}' for key, value in given.items())}}}"


@fuzzed
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
        st.lists(options(), min_size=1, max_size=3).map(",".join),
    )
)
def test_the_text_of_a_pipeline(text: str) -> None:
    pipeline = refused_or(lambda: parse_pipeline(text))
    if pipeline is not None:
        assert str(parse_pipeline(str(pipeline))) == str(pipeline)


@fuzzed
@given(st.data())
def test_a_program_file_with_damaged_text(
    members: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["program.txt", "manifest.json"]))
    text = data.draw(damaged(members[name].decode()))
    path = tmp_path / "damaged.mcg"
    path.write_bytes(archive({**members, name: text.encode(errors="replace")}))
    program = refused_or(lambda: container.load(path))
    if program is not None:
        refused_or(lambda: cost(program))
        container.save(program, path)
        assert container.load(path) == program


@fuzzed
@given(st.data())
def test_a_program_file_with_spoilt_bytes(
    members: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "spoilt.mcg"
    path.write_bytes(data.draw(spoilt(archive(members))))
    refused_or(lambda: container.load(path))
    refused_or(lambda: container.load_manifest(path))


def header(entries: dict[str, Any]) -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


HUGE = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
TENSORS = {
    "a shape beyond all memory": header({"x": HUGE}),
    "offsets behind the end": header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "a header of 2^63 bytes": (2**63 - 1).to_bytes(8, "little"),
    "a header that is no table": len(b"[]").to_bytes(8, "little") + b"[]",
    "a header nested without end": len(b"[" * 9000).to_bytes(8, "little") + b"[" * 9000,
    "nothing": b"",
}
MANIFESTS = {
    "a list": b"[]",
    "a word": b'"x"',
    "nested without end": b"[" * 100_000,
    "passes of another kind": b'{"format": 1, "passes": 3}',
    "a pass of another kind": b'{"format": 1, "passes": [["a", 1, 2]]}',
    "a pass with other fields": b'{"format": 1, "passes": [{"text": 1, "seed": "x", "seconds": []}]}',
    "a number without end": b'{"format": 1, "passes": [' + b"9" * 10_000 + b"]}",
}


@pytest.mark.parametrize("case", TENSORS)
def test_hostile_tensors(members: dict[str, bytes], tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.mcg"
    path.write_bytes(archive({**members, "weights.safetensors": TENSORS[case]}))
    assert refused_or(lambda: container.load(path)) is None
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(TENSORS[case])
    assert refused_or(lambda: read_checkpoint(path)) is None


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests(members: dict[str, bytes], tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.mcg"
    path.write_bytes(archive({**members, "manifest.json": MANIFESTS[case]}))
    assert refused_or(lambda: container.load(path)) is None
    refused_or(lambda: container.load_manifest(path))


def test_a_bomb_is_not_unfolded(members: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "bomb.mcg"
    bomb = archive({**members, "weights.safetensors": bytes(300 * MIB)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < MIB
    path.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused_or(lambda: container.load(path)) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "..\\outside.txt"])
def test_nothing_is_written_outside(members: dict[str, bytes], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "tiny.mcg").write_bytes(archive({**members, name: b"outside"}))
    container.load(folder / "tiny.mcg")
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "tiny.mcg"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_in_each_line(tiny: Program, hostile: str) -> None:
    lines = print_program(tiny).splitlines()
    for place, line in enumerate(lines):
        words = line.split(" ")
        text = "\n".join([*lines[:place], " ".join([*words[:-1], hostile]), *lines[place + 1 :]])
        refused_or(lambda text=text: parse_program(text, tiny.state_dict()))


def checkpoint(suffix: str) -> bytes:
    tensors = {"a.weight": torch.rand(3, 4), "b": torch.arange(5)}
    if suffix == ".safetensors":
        return safetensors.torch.save(tensors)
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors}, buffer)
    return buffer.getvalue()


def test_a_checkpoint_that_is_a_bomb_is_not_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(io.BytesIO(checkpoint(".pth"))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    path.write_bytes(archive({**members, "archive/data/2": bytes(300 * MIB)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="its members are compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@fuzzed
@given(st.data())
def test_a_spoilt_checkpoint(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"spoilt{suffix}"
    path.write_bytes(data.draw(spoilt(checkpoint(suffix))))
    refused_or(lambda: read_checkpoint(path))


@fuzzed
@given(st.data())
def test_a_checkpoint_with_a_spoilt_pickle(tmp_path: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(checkpoint(".pth"))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    path = tmp_path / "spoilt.pth"
    path.write_bytes(archive({**members, pickled: data.draw(spoilt(members[pickled]))}))
    refused_or(lambda: read_checkpoint(path))


@fuzzed
@given(st.data())
def test_a_checkpoint_with_a_damaged_header(tmp_path: Path, data: st.DataObject) -> None:
    raw = checkpoint(".safetensors")
    size = int.from_bytes(raw[:8], "little")
    spaced = re.sub(r"([][{},:])", r" \1 ", raw[8 : 8 + size].decode())
    head = data.draw(damaged(spaced)).encode(errors="replace")
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])
    refused_or(lambda: read_checkpoint(path))


def test_a_tensor_that_repeats_itself_is_not_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "repeated.pth"
    torch.save({"x": torch.zeros(1, dtype=torch.half).expand(2**40)}, path)
    assert path.stat().st_size < MIB
    with pytest.raises(CheckpointError, match="'x' is larger than what the file stores of it"), limited():
        read_checkpoint(path)


@pytest.fixture(scope="module")
def recording(tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recording")
    pipeline = parse_pipeline("fold-batch-norm")
    recorder = Recorder(folder, tiny, pipeline)
    pipeline.run(tiny, after_each=[recorder])
    recorder.finish()
    return {path.name: path.read_text() for path in folder.iterdir()}


@fuzzed
@given(st.data())
def test_a_recording(recording: dict[str, str], tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(recording)))
    for each, text in recording.items():
        (tmp_path / each).write_text(text)
    text = data.draw(damaged(recording[name]))
    (tmp_path / name).write_text(text, errors="replace")
    history = refused_or(lambda: load_history(tmp_path))
    if history is not None:
        history_document(history)
        print_history(history)
