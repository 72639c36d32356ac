"""Scores on held-out clips."""

import torch

from mattecompress.data.clips import procedural_clip
from mattecompress.training.evaluation import HELD_OUT_SEED, HeldOut, evaluate

FEW = HeldOut(clips=2, frames=3, height=32, width=32)


def test_trivial_answers_are_measured_too() -> None:
    document = evaluate(lambda clip: torch.zeros_like(clip.alpha), FEW)
    assert document["network"] == document["all_zero"]
    assert document["mean_alpha"]["mse"] < document["all_zero"]["mse"]
    assert document["clips"] == 2


def test_knows_the_truth_when_it_sees_it() -> None:
    alphas = iter([procedural_clip(HELD_OUT_SEED, number, 3, 32, 32).alpha for number in range(2)])
    document = evaluate(lambda clip: next(alphas), FEW)
    assert document["network"] == {"mad": 0, "mse": 0, "dtssd": 0}
    assert document["all_zero"]["mad"] > 0
