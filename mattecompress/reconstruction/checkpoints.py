"""What was learned of each unit, on disk: whole or absent, and taken up again by the same work only."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from mattecompress.errors import UserError
from mattecompress.feed import Feed
from mattecompress.files import UnwritableError, atomic_path
from mattecompress.program import Program
from mattecompress.text import digest, print_program


class CheckpointError(UserError):
    """A checkpoint is damaged."""


@dataclass(frozen=True)
class Outcome:
    """What became of one unit in one stage.

    before, after: noise over signal of its outputs with nearest and with learned rounding and scales.
    kept: whether what was learned was kept; what made the unit worse is not.
    """

    stage: str
    label: str
    before: float
    after: float
    kept: bool


class Checkpoints:
    """One file for each unit and stage; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.folder = folder / f"reconstruct-blocks-{identity}" if folder else None

    def save(self, stage: str, position: int, tensors: dict[str, Tensor], outcome: Outcome) -> None:
        """Write the tensors of a unit and its outcome."""
        if self.folder:
            metadata = {"outcome": json.dumps(asdict(outcome))}
            held = {name: value.detach().contiguous() for name, value in tensors.items()}
            with atomic_path(self._path(stage, position)) as temporary:
                safetensors.torch.save_file(held, temporary, metadata)

    def load(self, stage: str, position: int) -> tuple[dict[str, Tensor], Outcome] | None:
        """What was written, None where nothing was.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.folder or not self._path(stage, position).exists():
            return None
        path = self._path(stage, position)
        try:
            with safetensors.safe_open(path, "pt") as file:
                outcome = Outcome(**json.loads(file.metadata()["outcome"]))
                return {name: file.get_tensor(name) for name in file.keys()}, outcome  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); remove it to learn the block again") from error

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

    def _path(self, stage: str, position: int) -> Path:
        assert self.folder
        return self.folder / f"{stage}-{position:04d}.safetensors"


def identity_of(work: str, seed: int, program: Program, feed: Feed) -> str:
    """A name that another pass text, seed, program or clip would change."""
    clips: Sequence[str] = [digest(value) for clip in feed.clips for value in clip.values()]
    text = "\n".join([work, str(seed), print_program(program), *clips])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
