"""Checkpoint files to state dicts, and state dicts into models, with errors that say what is wrong and how to mend it."""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Never

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mattecompress.errors import UserError
from mattecompress.models.packed import PackingError, unpack
from mattecompress.program import describe_parameters

SUFFIXES = (".safetensors", ".pth", ".pt")
WRAPPERS = ("state_dict", "model")
MARKS = {
    "rvm-mobilenetv3": "backbone.features.0.0.weight",
    "rvm-resnet50": "backbone.layer1.0.conv1.weight",
    "bivm": "backbone.joins.0.whole.factor",
    "bimatting": "backbone.feature.0.conv1.weight",
    "mematte-small": "backbone.routers.0.in_conv.0.weight",
    "vitmatte-small": "backbone.pos_embed",
}
"""A tensor that tells each network's checkpoints from those below it.

A small ViTMatte or MEMatte stands for the base one too.
"""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not hold the weights that the model needs."""


class AbsentPart(nn.Module):
    """Stands where a checkpoint had no weights for an optional part; raises CheckpointError when it is used.

    absent_parameters: what the part would hold, for those who count the whole model.
    """

    def __init__(self, name: str, source: str, part: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.absent_parameters = describe_parameters(part)

    def forward(self, *inputs: Tensor) -> Never:
        """Refuse."""
        fixes = {
            "refiner": "use downsample ratio 1, refiner fast_guided_filter, or a checkpoint that holds it",
            "project_seg": "leave the segmentation pass out, or use a checkpoint that holds it",
        }
        fix = fixes.get(self.name, "use a checkpoint that holds it")
        raise CheckpointError(f"{self.source}: no weights for {self.name}, which this run needs; {fix}")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file by name, floating ones as float32; no code in it is run.

    A `state_dict` or `model` wrapper and a `module.` prefix (both left by training loops) are taken off; packed one-bit
    weights become floats with the same signs and scales.

    Raises:
        CheckpointError: no such file, an unknown suffix, a damaged file, or a file that is not a table of tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; expected one of {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        tensors: Any = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise CheckpointError(
            f"{path}: suffix '{path.suffix}' is unknown; expected one of {', '.join(SUFFIXES)}"
        )
    try:
        weights = unpack(_unwrap(tensors, path))
    except PackingError as error:
        raise CheckpointError(f"{path}: damaged one-bit weights: {error}; copy it again") from error
    return {name: _as_float32(value) for name, value in weights.items()}


def find_model(names: Iterable[str]) -> str | None:
    """The name in `MODELS` of the network whose state dict has these keys, or None when no known one has."""
    names = frozenset(names)
    return next((model for model, mark in MARKS.items() if mark in names), None)


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Read `path` into `model`, which was built as `name`.

    A network whose `checkpoints` names others takes theirs, and may fill in what they lack with its `complete`.
    Parts in `model.optional_parts` that the file leaves out become `AbsentPart`, and those that the model does not
    have are skipped; anything else must match in name and shape.

    Raises:
        CheckpointError: the file is unreadable, belongs to another model, lacks tensors, has tensors the model does
            not know, or holds a tensor of another shape or with values that are not finite.
    """
    tensors = read_checkpoint(path)
    found = find_model(tensors)
    if found is not None and found not in (name, *getattr(model, "checkpoints", ())):
        raise CheckpointError(
            f"{path}: holds {found} weights, not {name}; ask for {found} or give another file"
        )
    complete: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = getattr(model, "complete", dict)
    tensors = complete(tensors)
    expected = model.state_dict()
    optional = tuple(getattr(model, "optional_parts", ()))
    absent = [part for part in optional if _has(expected, part) and not _has(tensors, part)]
    surplus = [part for part in optional if not _has(expected, part)]
    expected = {key: value for key, value in expected.items() if _part(key) not in absent}
    tensors = {key: value for key, value in tensors.items() if _part(key) not in surplus}
    _check(expected, tensors, path, name)
    for part in absent:
        setattr(model, part, AbsentPart(part, path.name, model.get_submodule(part)))
    model.load_state_dict(tensors, strict=False)


def _check(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    required = [key for key in expected if not key.endswith("num_batches_tracked")]
    missing = [key for key in required if key not in tensors]
    if len(missing) == len(required):
        raise CheckpointError(
            f"{path}: holds no {name} weights; its first tensor is '{next(iter(tensors), 'none')}'"
        )
    if missing:
        counts = f"{len(missing)} of {len(expected)}"
        raise CheckpointError(
            f"{path}: {counts} {name} tensors are missing, first '{missing[0]}'; is it complete?"
        )
    unknown = [key for key in tensors if key not in expected]
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} tensors are not part of {name}, first '{unknown[0]}'")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, {name} needs {tuple(expected[key].shape)}"
            raise CheckpointError(
                f"{path}: '{key}' has shape {shapes}; give a checkpoint of the unchanged network"
            )
        if not value.isfinite().all():
            raise CheckpointError(
                f"{path}: '{key}' holds values that are not finite; the training behind it diverged"
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); copy it again"
        ) from error


def _read_torch(path: Path) -> Any:
    """What a file of `torch.save` holds; a damaged one may raise anything on the way."""
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = "holds objects other than tensors, or is damaged; save a plain state dict (or .safetensors)"
        raise CheckpointError(f"{path}: {reason}") from error
    except Exception as error:
        raise CheckpointError(f"{path}: damaged or not a PyTorch checkpoint; copy it again") from error


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for a zip that is not as `torch.save` makes them, which stores members as they are."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(Path(member.filename).name == "constants.pkl" for member in members):
        raise CheckpointError(f"{path}: is a TorchScript archive; give the plain weights (a state dict)")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path}: its members are compressed; save it again with torch.save")


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(value, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(value.get(wrapper), Mapping):
                value = value[wrapper]
                break
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(item, Tensor) for item in value.values())
    ):
        raise CheckpointError(f"{path}: is not a table of named tensors; save `model.state_dict()`")
    for key, item in value.items():
        if item.numel() * item.itemsize > item.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: '{key}' is larger than what the file stores of it; copy it again")
    return {str(key).removeprefix("module."): item for key, item in value.items()}


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _part(key: str) -> str:
    return key.partition(".")[0]


def _has(tensors: Mapping[str, Tensor], part: str) -> bool:
    return any(_part(key) == part for key in tensors)
