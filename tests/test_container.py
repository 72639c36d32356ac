import json
import zipfile
from pathlib import Path

import pytest

from mattecompress import container
from mattecompress.container import ContainerError
from mattecompress.files import UnwritableError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program


def test_round_trips(tiny: Program, tmp_path: Path) -> None:
    program = parse_pipeline("fold-batch-norm").run(tiny)
    container.save(program, tmp_path / "tiny.mcg", "abc")
    assert container.load(tmp_path / "tiny.mcg") == program
    manifest = container.load_manifest(tmp_path / "tiny.mcg")
    assert manifest["input_sha256"] == "abc"
    (record,) = manifest["passes"]
    assert record["text"] == "fold-batch-norm" and record["seconds"] > 0


def test_same_program_same_bytes(tiny: Program, tmp_path: Path) -> None:
    for name in ("a.mcg", "b.mcg"):
        container.save(tiny, tmp_path / name)
    assert (tmp_path / "a.mcg").read_bytes() == (tmp_path / "b.mcg").read_bytes()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="no such file"):
        container.load(tmp_path / "absent.mcg")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_cut_short(tiny: Program, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "tiny.mcg"
    container.save(tiny, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(ContainerError, match="not a .mcg file"):
        container.load(path)


def test_flipped_bits(tiny: Program, tmp_path: Path) -> None:
    path = tmp_path / "tiny.mcg"
    container.save(tiny, path)
    raw = bytearray(path.read_bytes())
    for place in range(100, len(raw), 97):
        raw[place] ^= 0x55
    path.write_bytes(bytes(raw))
    with pytest.raises(ContainerError):
        container.load(path)


def _repack(path: Path, compression: int, **members: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()} | members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def test_refuses_compressed_members(tiny: Program, tmp_path: Path) -> None:
    path = tmp_path / "tiny.mcg"
    container.save(tiny, path)
    _repack(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ContainerError, match="is compressed"):
        container.load(path)


def test_refuses_members_of_more_bytes_than_the_file_has(tiny: Program, tmp_path: Path) -> None:
    """Of either size that the directory of a zip claims."""
    path, entry = tmp_path / "tiny.mcg", b"PK\x01\x02"
    container.save(tiny, path)
    whole = path.read_bytes()
    for place in (20, 24):
        raw = bytearray(whole)
        raw[whole.index(entry) + place + 3] = 0x40
        path.write_bytes(raw)
        with pytest.raises(ContainerError, match=r"manifest\.json"):
            container.load(path)


def test_refuses_other_formats(tiny: Program, tmp_path: Path) -> None:
    path = tmp_path / "tiny.mcg"
    container.save(tiny, path)
    _repack(path, zipfile.ZIP_STORED, **{"manifest.json": json.dumps({"format": 99}).encode()})
    with pytest.raises(ContainerError, match="format 99 is not 1"):
        container.load(path)


def test_unwritable_folder_leaves_nothing(tiny: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="cannot write"):
        container.save(tiny, tmp_path / "file" / "tiny.mcg")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('%x : f32[1] = aten.from_file.default("weights.bin")', "takes no tensor"),
        ("%x : f32[1,4,6,8] = aten.relu_.default(%r1i)", "changes its input in place"),
        ("%x : f32[1] = aten.conv2d.default(%src, inf)", "aten.conv2d.default takes a tensor as weight"),
        ("%x : f32[1,4,6,h] = aten.relu.default(%r1i)", "%x: no input has a size h"),
    ],
)
def test_refuses_lines_that_break_a_rule(tiny: Program, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tiny.mcg"
    container.save(tiny, path)
    with zipfile.ZipFile(path) as archive:
        text = archive.read("program.txt").decode()
    hostile = text.replace("return fgr=", f"{line}\nreturn fgr=").encode()
    _repack(path, zipfile.ZIP_STORED, **{"program.txt": hostile})
    with pytest.raises(ContainerError, match=message):
        container.load(path)
