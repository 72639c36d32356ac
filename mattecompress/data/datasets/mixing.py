"""Training clips from foregrounds and backgrounds on disk; a clip depends on its numbers and the files alone.

A clip takes a random foreground and a random background, each from a random frame on and mirrored half of the time.
Both are scaled to cover the frame, enlarged by up to a half and cut at a random place. A picture in front moves as in
the test sets, one behind stands still. Footage that is too short runs to its end, back, and on. (The published
training also changes colours, blur and speed.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mattecompress.data.clips import Clip
from mattecompress.data.datasets.footage import Footage, Role, fingerprint
from mattecompress.data.datasets.placement import cover, sample_motion
from mattecompress.data.frames import Size, composite

MOST_ZOOM = 1.5


@dataclass(frozen=True)
class MixedClips:
    """An endless collection of clips for every seed; called as `procedural_clip`.

    foregrounds: clips that have `foreground` and `alpha`, such as `Dataset.foregrounds`.
    backgrounds: clips that have `frames`, such as `open_backgrounds` finds.
    """

    foregrounds: tuple[Footage, ...]
    backgrounds: tuple[Footage, ...]

    @cached_property
    def identity(self) -> dict[str, dict[str, int | str]]:
        """What tells this collection from others, wherever its folders lie."""
        kinds = {"foregrounds": self.foregrounds, "backgrounds": self.backgrounds}
        return {kind: {"clips": len(clips), "sha256": fingerprint(clips)} for kind, clips in kinds.items()}

    def __call__(self, seed: int, index: int, frames: int, height: int, width: int) -> Clip:
        """Clip number `index` of the collection `seed`, `frames` frames of (height, width).

        Raises:
            MediaError, DatasetError: footage cannot be read.
        """
        rng = np.random.default_rng([seed, index])
        size = (height, width)
        front = self.foregrounds[rng.integers(len(self.foregrounds))]
        foreground, alpha = _take(front, ("foreground", "alpha"), frames, size, rng)
        behind = self.backgrounds[rng.integers(len(self.backgrounds))]
        (background,) = _take(behind, ("frames",), frames, size, rng)
        return Clip(composite(alpha, foreground, background), alpha, foreground, background)


def _take(
    footage: Footage, roles: tuple[Role, ...], frames: int, size: Size, rng: np.random.Generator
) -> list[Tensor]:
    """The roles (T, C, H, W) of one piece of footage, all cut and moved alike."""
    start = int(rng.integers(max(footage.length - frames, 0) + 1))
    mirrored, zoom, place = rng.random() < 0.5, rng.uniform(1, MOST_ZOOM), (rng.random(), rng.random())
    motion = sample_motion(rng) if "alpha" in roles and footage.length == 1 else None
    taken = []
    for role in roles:
        pictures = footage.stream(role, start, min(frames, footage.length))
        cut = [cover(picture, size, zoom, place) for picture in pictures]
        if motion:
            cut = [motion.move(cut[0], number / max(frames - 1, 1)) for number in range(frames)]
        clip = torch.stack([cut[number] for number in _there_and_back(len(cut), frames)])
        taken.append(clip.flip(-1) if mirrored else clip)
    return taken


def _there_and_back(length: int, frames: int) -> list[int]:
    """0 1 2 1 0 1 ... for a length of 3."""
    period = max(2 * (length - 1), 1)
    return [min(number % period, period - number % period) for number in range(frames)]
