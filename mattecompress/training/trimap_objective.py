"""What a step minimizes for a network that takes a trimap, and how such a network is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from mattecompress.data.clips import Clip
from mattecompress.data.trimaps import make_trimap
from mattecompress.training.batches import ClipSource
from mattecompress.training.evaluation import HeldOut, evaluate
from mattecompress.training.recipe import Recipe, Routing, Stage
from mattecompress.training.state import TrainingError
from mattecompress.training.trimap_losses import compression_loss, distillation_loss, trimap_matting_loss
from mattecompress.training.trimap_network import TrimapAnswer, TrimapNetwork


@dataclass
class TrimapObjective:
    """The matte's loss, and by weight distillation and compression; trimaps are made from alpha.

    Pictures, trimaps and the routers' draws depend on seed, step and rank alone.
    """

    recipe: Recipe
    source: ClipSource
    network: TrimapNetwork
    teacher: TrimapNetwork | None = None

    def losses(self, stage: Stage, step: int) -> Iterator[Tensor]:
        """The one loss of a step.

        Raises:
            TrainingError: the network routes nothing, or has no teacher, for a stage that weighs that.
        """
        frames, alpha, trimap = self._pictures("matting", stage, step)
        if stage.routing:
            self.network.draw_with(stage.routing.noise(self.recipe.locate(step)[1] / stage.steps))
        with self._seeded(step), stage.precision(self.source.device):
            answer = self.network.answer(frames, trimap)
            taught = (
                self._taught(frames, trimap) if stage.routing and answer.taught is None else answer.taught
            )
        total = trimap_matting_loss(answer.alpha, alpha, trimap)["total"]
        yield total + routing_loss(stage.routing, answer, taught) if stage.routing else total

    @torch.no_grad()
    def measure(self, held_out: HeldOut) -> dict[str, Any]:
        """Scores on held-out clips, beside those of their trimaps, and which share of tokens attends, or would if drawn."""
        shares: list[tuple[Tensor, Tensor]] = []

        def matte(clip: Clip) -> Tensor:
            frames, trimap = (
                value.to(self.source.device) for value in (clip.frames, make_trimap(clip.alpha))
            )
            answer = self.network.answer(frames, trimap)
            if answer.share is not None and answer.expected is not None:
                shares.append((answer.share, answer.expected))
            return answer.alpha

        scores = evaluate(matte, held_out, {"trimap": lambda clip: make_trimap(clip.alpha)})
        means = torch.tensor(shares).mean(0).tolist() if shares else []
        return {**scores, **dict(zip(("routed_share", "drawn_share"), means, strict=False))}

    def look(self, stage: Stage, step: int) -> None:
        """Run the network on the pictures that a step has for batch-norm statistics."""
        frames, _, trimap = self._pictures("recalibration", stage, step)
        with self._seeded(step):
            self.network.answer(frames, trimap)

    def _pictures(self, purpose: str, stage: Stage, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (N,3,H,W), alpha and trimaps (N,1,H,W)."""
        sides = stage.sides(self.source.seed, step)
        batch = self.source.batch(purpose, step, stage.batch, stage.frames, *sides)
        alpha = batch.alpha.flatten(0, 1)
        return batch.frames.flatten(0, 1), alpha, self._trimaps(alpha, step)

    def _trimaps(self, alpha: Tensor, step: int) -> Tensor:
        draw = Random(f"{self.source.seed} {step} {self.source.rank} trimaps")
        radii = [[draw.randint(0, self.recipe.erosion) for _ in range(2)] for _ in alpha]
        return torch.stack([make_trimap(one[None], *two)[0] for one, two in zip(alpha, radii, strict=True)])

    @torch.no_grad()
    def _taught(self, frames: Tensor, trimap: Tensor) -> Tensor | None:
        return self.teacher.answer(frames, trimap).features if self.teacher else None

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """What the routers draw inside depends on the step, and nothing outside on what they draw."""
        device = self.source.device
        with torch.random.fork_rng([device] if device.startswith("cuda") else []):
            torch.manual_seed(Random(f"{self.source.seed} {step} {self.source.rank} routers").getrandbits(63))
            yield


def routing_loss(routing: Routing, answer: TrimapAnswer, taught: Tensor | None) -> Tensor:
    """A scalar: distillation and compression by weight.

    Raises:
        TrainingError: the network has no router or shows no features, or nothing is taught.
    """
    if answer.share is None or answer.features is None:
        raise TrainingError(
            "the network routes no tokens or shows no features: give it a recipe without routing"
        )
    if taught is None:
        raise TrainingError("there is no teacher: attach one with attach-distillation")
    distillation = routing.distillation * distillation_loss(answer.features, taught)
    return distillation + routing.compression * compression_loss(answer.share, routing.share)
