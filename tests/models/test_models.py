"""The table of models."""

import json

import pytest
import torch

from mattecompress.data.clips import procedural_clip
from mattecompress.measuring.metrics import mad
from mattecompress.models import MODELS, SHIPPED, UnknownModelError, build_model, shipped_checkpoint
from mattecompress.models.checkpoints import CheckpointError
from mattecompress.training.evaluation import HELD_OUT_SEED

LARGE = ("mematte-base", "vitmatte-base")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in MODELS]
)
def test_every_name_builds(name: str) -> None:
    assert not build_model(name, untrained=True).training


def test_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownModelError, match="did you mean rvm-resnet50"):
        build_model("rvm-resnet5", untrained=True)


def test_models_without_shipped_weights_say_so() -> None:
    for name in MODELS.keys() - SHIPPED.keys():
        with pytest.raises(CheckpointError, match=f"no weights are shipped for {name}"):
            shipped_checkpoint(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_come_with_their_record(name: str) -> None:
    path = shipped_checkpoint(name)
    record = json.loads(path.with_suffix(".json").read_text())
    scores = record["held_out"]
    assert scores["network"]["mad"] < min(scores["all_zero"]["mad"], scores["mean_alpha"]["mad"]) / 3
    assert len(record["losses"]) == record["steps"]
    assert path.stat().st_size <= 8 * 2**20


@torch.no_grad()
def test_shipped_weights_matte_a_held_out_clip() -> None:
    clip = procedural_clip(HELD_OUT_SEED, 1, 4, 144, 256)
    alpha = build_model("rvm-mobilenetv3")(clip.frames[None])[1][0]
    assert mad(alpha, clip.alpha).mean() < mad(torch.zeros_like(alpha), clip.alpha).mean() / 3
