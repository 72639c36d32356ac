"""Batches of clips; what a step sees depends on the collection and on (seed, step, rank) alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mattecompress.data.clips import Clip, procedural_clip

CLIPS_PER_STEP = 1 << 20
CLIPS_PER_PURPOSE = 1 << 16
PURPOSES = ("matting", "high", "segmentation", "recalibration")

Collection = Callable[[int, int, int, int, int], Clip]
"""From seed, index, frames, height and width to a clip, the same whenever it is called."""


@dataclass(frozen=True)
class Batch:
    """float32 in 0..1: frames and foreground (B,T,3,H,W), alpha (B,T,1,H,W)."""

    frames: Tensor
    alpha: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class ClipSource:
    """An endless collection of clips, dealt out so that no step, purpose or rank sees another's clips."""

    seed: int
    rank: int = 0
    device: str = "cpu"
    collection: Collection = procedural_clip

    def batch(self, purpose: str, step: int, count: int, frames: int, height: int, width: int) -> Batch:
        """`count` clips for one use of one step; `purpose` is one of PURPOSES."""
        first = step * CLIPS_PER_STEP + PURPOSES.index(purpose) * CLIPS_PER_PURPOSE + self.rank * count
        clips = [self.collection(self.seed, first + i, frames, height, width) for i in range(count)]
        return stack(clips, self.device)


def stack(clips: list[Clip], device: str = "cpu") -> Batch:
    """Clips of one shape as one batch."""
    return Batch(
        frames=torch.stack([clip.frames for clip in clips]).to(device),
        alpha=torch.stack([clip.alpha for clip in clips]).to(device),
        foreground=torch.stack([clip.foreground for clip in clips]).to(device),
    )
