from pathlib import Path

import pytest
import torch

from mattecompress.data.clips import Clip
from mattecompress.data.datasets.footage import DatasetError, open_backgrounds
from mattecompress.data.datasets.layouts import open_dataset
from mattecompress.data.datasets.mixing import MixedClips
from tests.data.datasets.folders import backgrounds, composed, distinctions, videomatte


def mixed(folder: Path, front: Path) -> MixedClips:
    return MixedClips(
        open_dataset(str(front)).foregrounds, open_backgrounds(backgrounds(folder / "behind", 2, 2))
    )


def same(one: Clip, other: Clip) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_clip_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    clips = mixed(tmp_path, videomatte(tmp_path / "front"))
    made = [clips(3, index, 4, 16, 24) for index in range(6)]
    again = mixed(tmp_path, tmp_path / "front")
    assert all(same(again(3, index, 4, 16, 24), made[index]) for index in (5, 0))
    frames = [clip.frames.numpy().tobytes() for clip in [*made, clips(4, 0, 4, 16, 24)]]
    assert len(set(frames)) == 7


def test_what_a_clip_holds(tmp_path: Path) -> None:
    clip = mixed(tmp_path, videomatte(tmp_path / "front"))(0, 0, 5, 16, 24)
    assert clip.frames.shape == clip.foreground.shape == clip.background.shape == (5, 3, 16, 24)
    assert clip.alpha.shape == (5, 1, 16, 24)
    assert torch.equal(clip.frames, clip.foreground * clip.alpha + clip.background * (1 - clip.alpha))
    assert all(
        part.dtype == torch.float32 and part.min() >= 0 and part.max() <= 1 for part in vars(clip).values()
    )


def test_short_footage_runs_back(tmp_path: Path) -> None:
    alpha = mixed(tmp_path, videomatte(tmp_path / "front", (3,)))(0, 0, 7, 16, 24).alpha
    assert torch.equal(alpha[[0, 1, 2, 1, 0, 1, 2]], alpha)
    assert not torch.equal(alpha[0], alpha[2])


def test_pictures_in_front_move_and_stay_with_their_alpha(tmp_path: Path) -> None:
    front = distinctions(tmp_path / "front")
    for number in range(3):
        path = front / "GT" / f"boy-{number}.png"
        path.unlink()
        path.symlink_to(front / "FG" / f"boy-{number}.jpg")
    clip = mixed(tmp_path, front)(1, 0, 4, 16, 24)
    assert torch.equal(clip.alpha, clip.foreground[:, :1])
    assert len({frame.numpy().tobytes() for frame in clip.alpha}) == 4


def test_composed_clips_have_no_foregrounds_to_mix(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="rvm holds composed clips, no foregrounds"):
        mixed(tmp_path, composed(tmp_path / "front"))
