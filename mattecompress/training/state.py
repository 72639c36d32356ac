"""The state of a training run on disk: whole or absent, and safe to read."""

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.models.packed import pack

PREFIX = "checkpoint-"
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
"""What readers raise for a file that is not what was written."""


class TrainingError(UserError):
    """A training run cannot begin or go on."""


@dataclass
class RunState:
    """Everything that the next step depends on, apart from the recipe: with it a run goes on as if never stopped.

    step: the next step to take.
    average: running mean of the weights by name, or empty where the recipe takes none.
    losses: the total loss of each step taken so far.
    seconds: time spent so far.
    """

    step: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    losses: list[float]
    seconds: float

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write `folder`/checkpoint-<step>, then drop older ones; `identity` tells this run from others."""
        target = folder / f"{PREFIX}{self.step:06d}"
        if target.exists():
            return
        with atomic_path(target) as temporary:
            temporary.mkdir()
            _save_tensors(self.model.state_dict(), temporary / "model.safetensors")
            _save_tensors(self.average, temporary / "average.safetensors")
            torch.save(self.optimizer.state_dict(), temporary / "optimizer.pt")
            progress = {"step": self.step, "losses": self.losses, "seconds": self.seconds, "run": identity}
            (temporary / "progress.json").write_text(json.dumps(progress))
        for path in _checkpoints(folder):
            if path != target:
                shutil.rmtree(path)

    def restore(self, folder: Path, identity: dict[str, Any]) -> bool:
        """Take over the newest checkpoint in `folder`; False when there is none.

        Raises:
            TrainingError: it belongs to another run (recipe, seed, checkpoint, number of processes), or is damaged.
        """
        found = _checkpoints(folder)
        if not found:
            return False
        path = found[-1]
        try:
            progress = json.loads((path / "progress.json").read_text())
            _check_identity(progress["run"], json.loads(json.dumps(identity)), path)
            self.model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
            average = safetensors.torch.load_file(path / "average.safetensors")
            self.optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
            self.step, self.losses, self.seconds = progress["step"], progress["losses"], progress["seconds"]
        except DAMAGE as error:
            raise TrainingError(f"{path}: damaged checkpoint ({error}); remove it to start again") from error
        for name, value in self.average.items():
            value.copy_(average[name])
        return True


def save_weights(
    module: nn.Module,
    path: Path,
    half: bool = False,
    packed: bool = False,
    without: frozenset[str] = frozenset(),
) -> None:
    """Write a state dict as safetensors, whole or not at all.

    half: store floating tensors as float16 instead of float32.
    packed: store them as `mattecompress.models.packed` does.
    without: parts (first components of names) that are left out.
    """
    tensors = pack(module) if packed else _at_precision(module, torch.float16 if half else torch.float32)
    stored = {name: value for name, value in tensors.items() if name.partition(".")[0] not in without}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(stored))


def _at_precision(module: nn.Module, kind: torch.dtype) -> dict[str, Tensor]:
    return {
        name: (value.to(kind) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; what an interrupted write left behind is removed."""
    for partial in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.glob(f"{PREFIX}*"))


def _check_identity(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    """Refuse another run; one that was begun before runs noted their checkpoint counts as begun with the same."""
    theirs = {"checkpoint": ours.get("checkpoint"), **theirs}
    different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if different:
        raise TrainingError(f"{path}: was made with another {', '.join(different)}; choose another folder")


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
