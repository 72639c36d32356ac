"""The `.mcg` file: a zip of a program's text, its tensors and a manifest. No pickle; loading runs nothing."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.program import PassRecord, Program
from mattecompress.text import print_program
from mattecompress.text_parser import TextError, parse_program
from mattecompress.verify import VerifyError, verify

FORMAT_VERSION = 1
_MEMBERS = ("manifest.json", "program.txt", "weights.safetensors")
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ContainerError(UserError):
    """A `.mcg` file is missing, damaged or of another format."""


def save(program: Program, path: str | Path, input_hash: str = "") -> None:
    """Write a program to a `.mcg` file, whole or not at all.

    input_hash: digest of the file that the program was captured from, kept in the manifest.

    Raises:
        UnwritableError: the file cannot be written.
    """
    path = Path(path)
    manifest = {
        "format": FORMAT_VERSION,
        "program": program.name,
        "input_sha256": input_hash,
        "passes": [asdict(record) for record in program.history],
    }
    tensors = {name: value.detach().contiguous() for name, value in program.state_dict().items()}
    members = (
        json.dumps(manifest, indent=1).encode(),
        print_program(program).encode(),
        safetensors.torch.save(tensors),
    )
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(_MEMBERS, members, strict=True):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)


def load(path: str | Path) -> Program:
    """Read a `.mcg` file.

    Members are stored, never compressed, so a file cannot unfold into more than it holds.

    Raises:
        ContainerError: the file is missing, damaged, or not a program.
    """
    path = Path(path)
    members = _read_members(path)
    try:
        manifest = _read_manifest(path, members)
        if manifest.get("format") != FORMAT_VERSION:
            raise ContainerError(
                f"{path}: format {manifest.get('format')} is not {FORMAT_VERSION}: capture the model again"
            )
        tensors = _read_tensors(members["weights.safetensors"])
        program = parse_program(members["program.txt"].decode(), tensors)
        program.history = _timed(program.history, manifest["passes"])
        verify(program)
    except (TextError, VerifyError) as error:
        raise ContainerError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise ContainerError(f"{path}: damaged: {error}; capture the model again") from error
    return program


def load_manifest(path: Path) -> Mapping[str, object]:
    """The manifest alone: format, input hash, and each pass with its options, seed and seconds.

    Raises:
        ContainerError: the file is missing or damaged.
    """
    return _read_manifest(path, _read_members(path))


def _read_members(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            for name in _MEMBERS:
                member = archive.getinfo(name)
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ContainerError(f"{path}: member {name} is compressed: this is no .mcg file")
                if max(member.file_size, member.compress_size) > size:
                    raise ContainerError(
                        f"{path}: damaged: member {name} claims more bytes than the file has"
                    )
            return {name: archive.read(name) for name in _MEMBERS}
    except FileNotFoundError as error:
        raise ContainerError(f"{path}: no such file; make one with `mattecompress capture`") from error
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise ContainerError(f"{path}: not a .mcg file, or damaged ({error})") from error


def _read_manifest(path: Path, members: Mapping[str, bytes]) -> Mapping[str, Any]:
    try:
        manifest = json.loads(members["manifest.json"])
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"{path}: damaged manifest: {error}; capture the model again") from error
    if not isinstance(manifest, dict):
        raise ContainerError(f"{path}: its manifest is no table; capture the model again")
    return manifest


def _timed(history: tuple[PassRecord, ...], records: Any) -> tuple[PassRecord, ...]:
    """The passes that the text names, with the seconds that the manifest knows.

    Raises:
        ValueError: the manifest names others.
    """
    timed = tuple(PassRecord(record["text"], record["seed"], float(record["seconds"])) for record in records)
    if timed != history:
        raise ValueError("text and manifest name different passes")
    return timed


def _read_tensors(raw: bytes) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in safetensors.torch.load(raw).items()}
