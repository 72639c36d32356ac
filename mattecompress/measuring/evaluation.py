"""How well a program mattes: the papers' video metrics over clips."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mattecompress.data.sources import SourceClip, clip_inputs
from mattecompress.errors import UserError
from mattecompress.interface import alpha_name
from mattecompress.measuring.metrics import evaluate_clip
from mattecompress.preparation import fix_size
from mattecompress.program import Program
from mattecompress.running.stream import Runner, Stream

METRICS = ("mad", "mse", "grad", "conn", "dtssd", "fgr_mse")


class NoTruthError(UserError):
    """Clips without known alpha, and no reference program to stand in for it."""


@dataclass(frozen=True)
class Evaluation:
    """Number of frames, and each metric's mean in the papers' units."""

    frames: int
    metrics: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The document that `eval --json` prints; a metric that could not be measured is null."""
        measured = {name: self.metrics.get(name, math.nan) for name in METRICS}
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        return {"frames": self.frames, "metrics": finite}


def evaluate(
    program: Program, run: Runner, clips: Iterable[SourceClip], reference: Program | None = None
) -> Evaluation:
    """Metrics of `run`'s alpha and foreground, states carried through each clip.

    The truth is the clip's own alpha; with `reference`, it is what that program yields.

    Raises:
        NoTruthError: a clip has no alpha and there is no reference.
        MatteOutputError: no output of a program can be a matte.
        ResolutionError, PreconditionError: a program cannot take the clip's size.
    """
    results, frames = [], []
    for clip in clips:
        true_alpha, true_foreground = _truth(clip, reference)
        alpha, foreground = predict(program, run, clip)
        known = foreground is not None and true_foreground is not None
        colours = (foreground, true_foreground) if known else (None, None)
        results.append(evaluate_clip(alpha, true_alpha, *colours))
        frames.append(len(clip.frames))
    metrics = {
        name: sum(result[name] * count for result, count in zip(results, frames, strict=True)) / sum(frames)
        for name in METRICS
        if all(name in result for result in results)
    }
    return Evaluation(sum(frames), metrics)


def predict(program: Program, run: Runner, clip: SourceClip) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Alpha (T,1,H,W), and foreground (T,3,H,W) where the program yields one.

    States of a program of open size take theirs from the clip.

    Raises:
        ResolutionError, PreconditionError: the program cannot take the clip's size.
        TrimapError: the program takes a trimap, and the clip's alpha is unknown.
        MatteOutputError: none of its outputs can be a matte.
    """
    height, width = clip.frames.shape[-2:]
    stream = Stream(fix_size(program, (height, width)), run)
    outputs = list(stream.over_clip(clip_inputs(program, clip)))
    alpha = torch.cat([output[alpha_name(program)] for output in outputs])
    foreground = torch.cat([output["fgr"] for output in outputs]) if "fgr" in program.output_names else None
    return alpha, foreground


def _truth(clip: SourceClip, reference: Program | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    if reference is not None:
        return predict(reference, reference.run, clip)
    if clip.alpha is None:
        raise NoTruthError(
            f"{clip.name} has no known alpha: add --reference PROGRAM, or use --data procedural"
        )
    return clip.alpha, clip.foreground
