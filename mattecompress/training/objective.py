"""What the matting pass of a step minimizes: the matte's loss, and what else its recipe and stage weigh."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mattecompress.training.batches import Batch, ClipSource
from mattecompress.training.evaluation import HeldOut, evaluate
from mattecompress.training.losses import evolution_loss, matting_loss, mimicking_loss, segmentation_loss
from mattecompress.training.network import Answer, Network, resized
from mattecompress.training.recipe import Recipe, Stage
from mattecompress.training.state import TrainingError

COARSE_LEVELS = 1


@dataclass
class ClipObjective:
    """The losses of a network over clips."""

    recipe: Recipe
    source: ClipSource
    network: Network
    teacher: Network | None = None

    def losses(self, stage: Stage, step: int) -> Iterator[Tensor]:
        """The step's losses, one pass after the other, so that one graph at a time is in memory."""
        if stage.frames:
            sides = stage.sides(self.source.seed, step)
            batch = self.source.batch("matting", step, stage.batch, stage.frames, *sides)
            with stage.precision(self.source.device):
                answer = self.network.answer(batch.frames)
                taught = self._taught(batch) if stage.mimicking else ()
            yield clip_loss(self.recipe, stage, batch, answer, taught, self.network.module)
        if stage.high is not None:
            size = (stage.high.frames, stage.high.height, stage.high.width)
            batch = self.source.batch("high", step, stage.batch, *size)
            with stage.precision(self.source.device):
                matte = self.network.matte(batch.frames, stage.high.ratio)
            yield matting_loss(*matte, batch.foreground, batch.alpha)["total"]
        if stage.segmentation:
            size = (stage.frames, stage.height, stage.width)
            batch = self.source.batch("segmentation", step, stage.batch, *size)
            with stage.precision(self.source.device):
                logits = self.network.segment(batch.frames)
            yield segmentation_loss(logits, (batch.alpha > 0.5).float())

    def measure(self, held_out: HeldOut) -> dict[str, Any]:
        """Scores on held-out clips."""
        device = self.source.device
        return evaluate(lambda clip: self.network.matte(clip.frames[None].to(device))[1][0], held_out)

    def look(self, stage: Stage, step: int) -> None:
        """Run the network on the clips that a step has for batch-norm statistics."""
        size = (max(stage.batch, 2), stage.frames, stage.height, stage.width)
        self.network.matte(self.source.batch("recalibration", step, *size).frames)

    @torch.no_grad()
    def _taught(self, batch: Batch) -> tuple[Tensor, ...]:
        assert self.teacher is not None
        return self.teacher.features(batch.frames)


def clip_loss(
    recipe: Recipe, stage: Stage, batch: Batch, answer: Answer, taught: tuple[Tensor, ...], module: nn.Module
) -> Tensor:
    """A scalar: matting loss, and by weight that of the coarse matte, mimicking and evolution.

    taught: the teacher's features in a stage with mimicking.
    module: the network's, whose factors evolution looks at.

    Raises:
        TrainingError: the network shows no features, or has no factors, for a stage that weighs them.
    """
    total = matting_loss(answer.foreground, answer.alpha, batch.foreground, batch.alpha)["total"]
    if recipe.coarse and answer.coarse is not None:
        foreground, alpha = (resized(clip, answer.coarse[0]) for clip in (batch.foreground, batch.alpha))
        coarse = matting_loss(*answer.coarse, foreground, alpha, levels=COARSE_LEVELS)["total"]
        total = total + recipe.coarse * coarse
    if stage.mimicking:
        if not answer.features:
            raise TrainingError("the network shows no features to mimic: tap them with attach-mimicking")
        total = total + stage.mimicking * mimicking_loss(answer.features, taught, answer.mask)
    if stage.evolution:
        factors = crossing_factors(module)
        if not factors:
            raise TrainingError(
                "the network has no elastic shortcuts over groups: give it a recipe without evolution"
            )
        total = total + stage.evolution * evolution_loss(factors)
    return total


def crossing_factors(module: nn.Module) -> list[nn.Parameter]:
    """Factors of the elastic shortcuts that lead over several layers of an encoder's group."""
    named = module.named_parameters()
    return [factor for name, factor in named if ".joins." in name and name.endswith(".factor")]
