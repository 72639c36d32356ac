"""Metrics of a network on held-out procedural clips."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mattecompress.data.clips import Clip, procedural_clip
from mattecompress.measuring import metrics

HELD_OUT_SEED = 20_000_003


@dataclass(frozen=True)
class HeldOut:
    """Clips that no training run sees: collection HELD_OUT_SEED, which training refuses as its seed."""

    clips: int = 24
    frames: int = 16
    height: int = 144
    width: int = 256


HELD_OUT = HeldOut()


Matte = Callable[[Clip], Tensor]
"""From a clip to its alpha (T,1,H,W)."""
NOTHING: Mapping[str, Matte] = {}


@torch.no_grad()
def evaluate(
    matte: Matte, held_out: HeldOut = HELD_OUT, others: Mapping[str, Matte] = NOTHING
) -> dict[str, Any]:
    """Scores of `matte`, of two trivial answers, and of `others` by name.

    Scores are those of `mattecompress.measuring.metrics`. The trivial answers are alpha 0 everywhere, and the mean
    alpha of all the clips everywhere.
    """
    numbers, shape = range(held_out.clips), (held_out.frames, held_out.height, held_out.width)
    clips = [procedural_clip(HELD_OUT_SEED, number, *shape) for number in numbers]
    true = [clip.alpha for clip in clips]
    mean = torch.stack(true).mean()
    answers = {
        "network": [matte(clip).float().cpu() for clip in clips],
        "all_zero": [torch.zeros_like(alpha) for alpha in true],
        "mean_alpha": [mean.expand_as(alpha) for alpha in true],
        **{name: [other(clip) for clip in clips] for name, other in others.items()},
    }
    scores = {name: score(predicted, true) for name, predicted in answers.items()}
    return {"seed": HELD_OUT_SEED, **asdict(held_out), **scores}


def score(predicted: list[Tensor], true: list[Tensor]) -> dict[str, float]:
    """mad, mse and dtssd over clips of alpha (T,1,H,W)."""
    pairs = zip(predicted, true, strict=True)
    rules = {"mad": metrics.mad, "mse": metrics.mse, "dtssd": metrics.dtssd}
    return metrics.average({name: rule(p, t) for name, rule in rules.items()} for p, t in pairs)
