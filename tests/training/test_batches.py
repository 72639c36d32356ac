"""Which clips a step sees."""

import torch

from mattecompress.data.clips import procedural_clip
from mattecompress.training.batches import PURPOSES, ClipSource


def test_same_step_same_bytes() -> None:
    first, second = (ClipSource(7).batch("matting", 5, 2, 2, 32, 48) for _ in range(2))
    assert torch.equal(first.frames, second.frames)
    assert first.frames.shape == (2, 2, 3, 32, 48)
    assert first.alpha.shape == (2, 2, 1, 32, 48)
    assert first.foreground.shape == (2, 2, 3, 32, 48)


def test_steps_purposes_and_ranks_see_their_own_clips() -> None:
    batches = [ClipSource(7).batch(purpose, step, 2, 1, 32, 32) for purpose in PURPOSES for step in (0, 1)]
    batches.append(ClipSource(7, rank=1).batch("matting", 0, 2, 1, 32, 32))
    frames = torch.cat([batch.frames for batch in batches])
    assert len({frame.numpy().tobytes() for frame in frames}) == len(frames)


def test_another_collection_is_dealt_out_alike() -> None:
    seen = []
    source = ClipSource(7, 1, collection=lambda *where: seen.append(where) or procedural_clip(*where))
    batch = source.batch("matting", 5, 2, 2, 32, 48)
    assert [where[0] for where in seen] == [7, 7]
    assert torch.equal(batch.frames, ClipSource(7, 1).batch("matting", 5, 2, 2, 32, 48).frames)
