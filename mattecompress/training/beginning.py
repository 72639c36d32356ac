"""What a run begins with: a named network, its teacher, and what a record says of their weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from mattecompress.models import build_model
from mattecompress.models.bimatting import BiMatting
from mattecompress.training.network import BiMattingNetwork, Network, RVMNetwork
from mattecompress.training.recipes import Recipe
from mattecompress.training.state import TrainingError


def build_network(name: str, seed: int, checkpoint: Path | None) -> Network:
    """A named model with the checkpoint's weights, or with random ones from `seed`."""
    torch.manual_seed(seed)
    model = build_model(name, checkpoint, untrained=checkpoint is None)
    return BiMattingNetwork(model) if isinstance(model, BiMatting) else RVMNetwork(model)


def build_teacher(recipe: Recipe, name: str, teacher: Path | Network | None) -> Network | None:
    """The teacher that a recipe wants, from its weights where these are given; None where it wants none.

    Raises:
        TrainingError: the recipe wants a teacher and none is given, or the other way round.
    """
    if recipe.teacher and teacher is None:
        raise TrainingError(
            f"recipe {name} mimics a teacher: give trained weights of {recipe.teacher} with --teacher"
        )
    if teacher is not None and not recipe.teacher:
        raise TrainingError(f"recipe {name} mimics nobody: leave --teacher out")
    return build_network(recipe.teacher, 0, teacher) if isinstance(teacher, Path) else teacher


def origin(weights: Path) -> dict[str, Any]:
    """What a record says of weights that a run was given: name, SHA-256, and their own record.

    The record is looked for beside the weights, as `record.json` or under their name.
    """
    places = (weights.with_name("record.json"), weights.with_suffix(".json"))
    record = next((place for place in places if place.is_file()), None)
    return {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "record": json.loads(record.read_text()) if record else None,
    }
