"""How well a program mattes: the papers' video metrics over clips."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mattecompress.data.frames import to_bytes
from mattecompress.data.sources import SourceClip, clip_inputs
from mattecompress.errors import UserError
from mattecompress.interface import TRIMAP, alpha_name
from mattecompress.measuring.metrics import UNKNOWN, average, evaluate_image, frame_metrics
from mattecompress.preparation import fix_size
from mattecompress.program import Program
from mattecompress.running.stream import Runner, Stream

METRICS = ("mad", "mse", "grad", "conn", "dtssd", "fgr_mse")


class NoTruthError(UserError):
    """Clips without known alpha, and no reference program to stand in for it."""


@dataclass(frozen=True)
class Evaluation:
    """Number of frames, and each metric's mean in the papers' units, over clips and then over frames.

    unknown: Composition-1K's sad, mse, grad and conn over what the trimap leaves unknown; empty without a trimap.
    """

    frames: int
    metrics: dict[str, float]
    unknown: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The document that `eval --json` prints; a metric that could not be measured is null."""
        measured = {name: self.metrics.get(name, math.nan) for name in METRICS}
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        document = {"frames": self.frames, "metrics": finite}
        return document | {"unknown": self.unknown} if self.unknown else document


def evaluate(
    program: Program,
    run: Runner,
    clips: Iterable[SourceClip],
    reference: Program | None = None,
    high_resolution: bool = False,
) -> Evaluation:
    """Metrics of `run`'s alpha and foreground, states carried through each clip; with a trimap those of images too.

    The truth is the clip's own alpha; with `reference`, it is what that program yields.
    `high_resolution` asks for the rules of large frames, as `mattecompress.measuring.metrics.frame_metrics` has them.

    Raises:
        NoTruthError: a clip has no alpha and there is no reference.
        MatteOutputError: no output of a program can be a matte.
        ResolutionError, PreconditionError: a program cannot take the clip's size.
    """
    results, frames = [], 0
    images: list[dict[str, float]] = []
    for clip in clips:
        true_alpha, true_foreground = _truth(clip, reference)
        alpha, foreground = predict(program, run, clip)
        known = foreground is not None and true_foreground is not None
        colours = (foreground, true_foreground) if known else (None, None)
        results.append(frame_metrics(alpha, true_alpha, *colours, high_resolution))
        frames += len(clip.frames)
        images += _evaluate_images(program, clip, alpha, true_alpha)
    shared = [name for name in METRICS if all(name in result for result in results)]
    metrics = average({name: result[name] for name in shared} for result in results)
    unknown = {
        name: statistics.mean(image[name] for image in images) for name in (images[0] if images else ())
    }
    return Evaluation(frames, metrics, unknown)


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


def _evaluate_images(
    program: Program, clip: SourceClip, alpha: torch.Tensor, true_alpha: torch.Tensor
) -> Iterator[dict[str, float]]:
    """The image metrics of each frame of which the program's trimap leaves something unknown."""
    inputs = clip_inputs(program, clip)
    if isinstance(inputs, torch.Tensor):
        return
    trimap = inputs[TRIMAP]
    marks = torch.where((trimap > 0) & (trimap < 1), UNKNOWN, to_bytes(trimap))
    for predicted, true, marked in zip(
        *(x[:, 0] for x in (to_bytes(alpha), to_bytes(true_alpha), marks)), strict=True
    ):
        if (marked == UNKNOWN).any():
            yield evaluate_image(predicted, true, marked)


def _truth(clip: SourceClip, reference: Program | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    if reference is not None:
        return predict(reference, reference.run, clip)
    if clip.alpha is None:
        raise NoTruthError(
            f"{clip.name} has no known alpha: add --reference PROGRAM, or use --data procedural"
        )
    return clip.alpha, clip.foreground
