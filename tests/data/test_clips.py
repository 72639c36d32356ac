import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.data.clips import procedural_clip

FROZEN_MEANS = [0.358181, 0.268499, 0.437643, 0.334566]
PARTS = ("frames", "alpha", "foreground", "background")


def same(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(16, 70), st.integers(16, 70))
def test_composition_law_holds_to_the_last_bit(seed, index, height, width):
    clip = procedural_clip(seed, index, 1, height, width)
    assert torch.equal(clip.frames, clip.foreground * clip.alpha + clip.background * (1 - clip.alpha))
    for part in PARTS:
        tensor = getattr(clip, part)
        assert tensor.dtype == torch.float32
        assert tensor.shape == (1, 1 if part == "alpha" else 3, height, width)
        assert tensor.min() >= 0 and tensor.max() <= 1


def test_frames_do_not_depend_on_how_many_are_asked():
    short, long = procedural_clip(4, 2, 2, 48, 64), procedural_clip(4, 2, 5, 48, 64)
    for part in PARTS:
        assert torch.equal(getattr(short, part), getattr(long, part)[:2])


def test_same_seed_and_index_give_the_same_bytes_with_any_number_of_threads(set_threads):
    one = procedural_clip(7, 3, 2, 48, 64)
    set_threads(3)
    np.random.seed(5)
    assert same(one, procedural_clip(7, 3, 2, 48, 64))


def test_seeds_and_indices_give_different_clips():
    clips = [procedural_clip(seed, index, 1, 32, 48) for seed in (0, 1) for index in (0, 1)]
    assert not any(torch.equal(a.frames, b.frames) for n, a in enumerate(clips) for b in clips[:n])


def test_clips_stay_the_same_from_version_to_version():
    clip = procedural_clip(0, 0, 2, 72, 128)
    means = [getattr(clip, part).double().mean().item() for part in PARTS]
    assert means == pytest.approx(FROZEN_MEANS, abs=2e-5)


def test_clips_move_and_hold_hard_soft_and_empty_alpha():
    soft = []
    for index in range(8):
        clip = procedural_clip(11, index, 8, 72, 128)
        assert (clip.frames[0] - clip.frames[7]).abs().mean() > 1e-3
        assert (clip.alpha == 0).any() and (clip.alpha > 0.99).any()
        soft.append(((clip.alpha > 0.05) & (clip.alpha < 0.95)).float().mean().item())
    assert 0.005 < np.mean(soft) < 0.2


def test_foreground_is_near_the_person_also_outside_of_alpha():
    clip = procedural_clip(11, 1, 1, 72, 128)
    assert clip.foreground[clip.alpha.expand(-1, 3, -1, -1) == 0].std() > 0.001


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 1, 32, 32), (0, -1, 1, 32, 32), (0, 0, 0, 32, 32), (0, 0, 1, 15, 32)]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="sides at least 16"):
        procedural_clip(*arguments)
