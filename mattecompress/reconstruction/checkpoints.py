"""What was learned, on disk: whole or absent, and taken up again by the same work only."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mattecompress.errors import UserError
from mattecompress.files import UnwritableError, atomic_path
from mattecompress.program import Program
from mattecompress.running.feed import Feed
from mattecompress.text import digest, print_program


class CheckpointError(UserError):
    """A checkpoint is damaged, or of another form."""


class Checkpoints:
    """Named sets of tensors, each a file with a record of plain values; without a folder nothing is kept.

    work: what is done, such as a pass's name. identity: from `identity_of`.
    """

    def __init__(self, folder: Path | None, work: str, identity: str) -> None:
        self.folder = folder / f"{work}-{identity}" if folder else None

    def save(self, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write tensors and what is said of them, in place of what was there."""
        if self.folder:
            held = {key: value.detach().contiguous() for key, value in tensors.items()}
            with atomic_path(self._path(name)) as temporary:
                safetensors.torch.save_file(held, temporary, {"record": json.dumps(dict(record))})

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was written, None where nothing was.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.folder or not self._path(name).exists():
            return None
        path = self._path(name)
        try:
            with safetensors.safe_open(path, "pt") as file:
                record = dict(json.loads(file.metadata()["record"]))
                return {key: file.get_tensor(key) for key in file.keys()}, record  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); remove it to learn that part again") from error

    @contextmanager
    def taking(self, name: str) -> Iterator[None]:
        """Within it, what was loaded is taken over.

        Raises:
            CheckpointError: it lacks a value, or has one of another shape.
        """
        try:
            yield
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._path(name)}: of another form, by another version ({error}); remove it to learn that part again"
            ) from error

    def scratch(self, otherwise: Path) -> Path:
        """An empty folder for values that need not outlive the work.

        Raises:
            UnwritableError: it cannot be made.
        """
        if self.folder is None:
            return otherwise
        path = self.folder / "values"
        shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UnwritableError(f"cannot write {path}: {error.strerror}; choose another folder") from error
        return path

    def _path(self, name: str) -> Path:
        assert self.folder
        return self.folder / f"{name}.safetensors"


def identity_of(work: str, seed: int, program: Program, feed: Feed, others: Sequence[Tensor] = ()) -> str:
    """A name that another pass text, seed, program, clip or other tensor would change."""
    clips: Sequence[str] = [digest(value) for clip in feed.clips for value in clip.values()]
    text = "\n".join([work, str(seed), print_program(program), *clips, *map(digest, others)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
