"""What a run begins with: a named network, its teacher, and what a record says of their weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mattecompress.models import build_model
from mattecompress.models.bimatting import BiMatting
from mattecompress.models.signatures import TRIMAP_MODELS
from mattecompress.training.network import BiMattingNetwork, Network, RVMNetwork
from mattecompress.training.recipe import Recipe
from mattecompress.training.state import TrainingError
from mattecompress.training.trimap_network import TrimapNetwork, ViTMatteNetwork

Trainable = Network | TrimapNetwork


def build_network(
    name: str, seed: int, checkpoint: Path | None, teacher: Trainable | None = None
) -> Trainable:
    """A named model with the checkpoint's weights, or with random ones from `seed`.

    teacher: whose weights a routed model begins with where there is no checkpoint.
    """
    torch.manual_seed(seed)
    model = build_model(name, checkpoint, untrained=checkpoint is None)
    if name in TRIMAP_MODELS:
        if teacher is not None and checkpoint is None:
            _begin_as(model, teacher.module)
        return ViTMatteNetwork(model)
    return BiMattingNetwork(model) if isinstance(model, BiMatting) else RVMNetwork(model)


def _begin_as(model: nn.Module, teacher: nn.Module) -> None:
    """Give a model what it has in common with its teacher."""
    own, given = model.state_dict(), teacher.state_dict()
    model.load_state_dict({name: given.get(name, value) for name, value in own.items()})


def build_teacher(
    recipe: Recipe, name: str, teacher: Path | Trainable | None, network: Trainable | None = None
) -> Trainable | None:
    """The teacher that a recipe wants, from its weights where these are given; None where it wants none.

    network: what is trained, where that is not the recipe's model; one that brings its own teacher wants no other.

    Raises:
        TrainingError: a teacher is wanted and none is given, or the other way round.
    """
    if isinstance(network, TrimapNetwork) and network.brings_teacher:
        if teacher is not None:
            raise TrainingError("the network brings its own teacher: give no other")
        return None
    if recipe.teacher and teacher is None:
        raise TrainingError(
            f"recipe {name} learns from a teacher: give trained weights of {recipe.teacher} with --teacher"
        )
    if teacher is not None and not recipe.teacher:
        raise TrainingError(f"recipe {name} learns from nobody: leave --teacher out")
    return build_network(recipe.teacher, 0, teacher) if isinstance(teacher, Path) else teacher


def origin(weights: Path) -> dict[str, Any]:
    """What a record says of weights that a run was given: name, SHA-256, and their own record.

    The record is looked for beside the weights, as `record.json` or under their name.

    Raises:
        TrainingError: the record cannot be read.
    """
    places = (weights.with_name("record.json"), weights.with_suffix(".json"))
    record = next((place for place in places if place.is_file()), None)
    return {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "record": _read_record(record) if record else None,
    }


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: holds no record of the weights beside it; mend or remove it") from error
