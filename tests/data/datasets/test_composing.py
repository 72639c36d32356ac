"""Test clips: the rules to the last bit, the same bytes from a seed, whole or absent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mattecompress.data.datasets import composing
from mattecompress.data.datasets.composing import Rules, blend, compose
from mattecompress.data.datasets.footage import DatasetError, open_backgrounds
from mattecompress.data.datasets.layouts import Dataset, open_dataset
from mattecompress.data.frames import resize, to_bytes
from mattecompress.files import UnwritableError
from tests.data.datasets.folders import backgrounds, composed, distinctions, picture, pictures, videomatte

FEW = Rules(clips=3, frames=4, size=(12, 16))


@pytest.fixture
def videos(tmp_path: Path) -> Dataset:
    return open_dataset(str(videomatte(tmp_path / "front")))


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    return backgrounds(tmp_path / "behind", stills=2, videos=1)


def stored(folder: Path, suffix: str = "*") -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob(suffix))])


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_layout_and_composition(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert compose(videos, open_backgrounds(behind), out, FEW) == (12, 16)
    assert sorted(path.name for path in out.iterdir()) == ["0000", "0001", "0002", "composition.json"]
    assert sorted(path.name for path in (out / "0001").iterdir()) == ["bgr", "com", "fgr", "pha"]
    assert [path.name for path in sorted((out / "0001" / "com").iterdir())] == [
        f"000{n}.png" for n in range(4)
    ]
    for clip in ("0000", "0001", "0002"):
        com, fgr, bgr = (stored(out / clip / role).astype(int) for role in ("com", "fgr", "bgr"))
        pha = stored(out / clip / "pha").astype(int)
        assert pha.shape == (4, 12, 16)
        assert np.array_equal(com, (fgr * pha[..., None] + bgr * (255 - pha[..., None])) // 255)


def test_videos_begin_at_a_random_frame_and_turn_around(
    tmp_path: Path, videos: Dataset, behind: Path
) -> None:
    rules = Rules(clips=6, frames=4, size=(12, 16))
    compose(videos, open_backgrounds(behind), tmp_path / "out", rules)
    scenes = json.loads((tmp_path / "out" / "composition.json").read_text())["scenes"]
    assert [scene["foreground"] for scene in scenes] == ["0000", "0001"] * 3
    assert [scene["mirrored"] for scene in scenes] == [False, False, True, True, False, False]
    assert len({scene["start"] for scene in scenes}) > 1
    assert sorted(scene["background"] for scene in scenes[:3]) == ["film-0", "still-0", "still-1"]
    assert [scene["background"] for scene in scenes[:3]] == [scene["background"] for scene in scenes[3:]]
    for scene in scenes:
        source = stored(tmp_path / "front" / "pha" / scene["foreground"])[scene["start"] :][:4]
        expected = source[:, :, ::-1] if scene["mirrored"] else source
        assert np.array_equal(stored(tmp_path / "out" / scene["clip"] / "pha"), expected)


def test_resized_and_rounded(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    compose(videos, open_backgrounds(behind), tmp_path / "out", Rules(clips=1, frames=6, size=(6, 8)))
    frame = torch.from_numpy(stored(tmp_path / "front" / "fgr" / "0000")[0]).permute(2, 0, 1) / 255
    expected = (resize(frame, (6, 8)) * 255).round().to(torch.uint8)
    assert np.array_equal(stored(tmp_path / "out" / "0000" / "fgr")[0], expected.permute(1, 2, 0))


def test_sizes_of_videos_and_pictures(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    one = Rules(clips=1, frames=1)
    films = open_backgrounds(behind)
    assert compose(videos, films, tmp_path / "videos", one) == (288, 512)
    stills = open_dataset(str(distinctions(tmp_path / "stills")))
    assert compose(stills, films, tmp_path / "pictures", one) == (512, 512)


def test_pictures_move_with_their_alpha(tmp_path: Path, behind: Path) -> None:
    front = distinctions(tmp_path / "front", 1)
    for role in ("FG", "GT"):
        next((front / role).iterdir()).unlink()
        picture(front / role / "man.png", 5, 20, 10, grey=True)
    compose(open_dataset(str(front)), open_backgrounds(behind), tmp_path / "out", FEW)
    alpha = stored(tmp_path / "out" / "0000" / "pha")
    assert np.array_equal(stored(tmp_path / "out" / "0000" / "fgr")[..., 0], alpha)
    assert len({frame.tobytes() for frame in alpha}) == 4
    assert not alpha[:, :, 0].all(), "the sides of a high picture are empty"
    still = stored(tmp_path / "out" / "0000" / "bgr")
    assert stored(tmp_path / "out" / "0001" / "pha").tobytes() != alpha.tobytes()
    assert still.shape == (4, 12, 16, 3)


def test_the_same_bytes_from_the_same_seed(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    films = open_backgrounds(behind)
    for name in ("one", "two"):
        compose(videos, films, tmp_path / name, FEW)
    compose(videos, films, tmp_path / "other", Rules(clips=3, frames=4, size=(12, 16), seed=11))
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert everything(tmp_path / "one") != everything(tmp_path / "other")


def test_large_frames_as_jpg(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    compose(videos, open_backgrounds(behind), tmp_path / "out", Rules(1, 2, (12, 16), suffix=".jpg"))
    paths = sorted((tmp_path / "out" / "0000" / "com").iterdir())
    assert [path.name for path in paths] == ["0000.jpg", "0001.jpg"]
    assert Image.open(paths[0]).format == "JPEG"


def test_goes_on_where_it_was_broken_off(
    tmp_path: Path, videos: Dataset, behind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = open_backgrounds(behind)
    compose(videos, films, tmp_path / "whole", FEW)

    def stop(done: int, total: int, what: str) -> None:
        assert total == 12
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(videos, films, tmp_path / "out", FEW, stop)
    partial = tmp_path / "out.partial"
    assert sorted(path.name for path in partial.iterdir()) == ["0000", "0001", "composition.json"]
    assert not (tmp_path / "out").exists()
    (partial / ".0002.0badbeef").mkdir()
    written = []
    real = composing.PictureWriter
    monkeypatch.setattr(composing, "PictureWriter", lambda path: written.append(path) or real(path))
    compose(videos, films, tmp_path / "out", FEW)
    assert len(written) == 16
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert not partial.exists()
    compose(videos, films, tmp_path / "out", FEW)
    assert len(written) == 16, "what is done is not done again"


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_another_composition_is_kept(tmp_path: Path, videos: Dataset, behind: Path, name: str) -> None:
    films = open_backgrounds(behind)
    compose(videos, films, tmp_path / name, Rules(clips=3, frames=4, size=(12, 16), seed=9))
    with pytest.raises(DatasetError, match=rf"{name}: was made with other scenes, seed; remove it"):
        compose(videos, films, tmp_path / "out", FEW)
    picture(tmp_path / "mine" / "holiday.png", 0)
    with pytest.raises(DatasetError, match="mine: holds something else; choose another folder"):
        compose(videos, films, tmp_path / "mine", FEW)


@pytest.mark.parametrize("name", ["out", "out.partial"])
@pytest.mark.parametrize("side", ["foregrounds", "backgrounds"])
def test_other_footage_of_the_same_names_is_refused(
    tmp_path: Path, videos: Dataset, behind: Path, name: str, side: str
) -> None:
    films = open_backgrounds(behind)
    compose(videos, films, tmp_path / name, FEW)
    kept = everything(tmp_path / name)
    changed = {"foregrounds": tmp_path / "front/pha/0001/00007.png", "backgrounds": behind / "still-1.png"}
    picture(changed[side], 7, 24, 32, grey=side == "foregrounds")
    with pytest.raises(DatasetError, match=rf"{name}: was made with other {side}; remove it"):
        compose(videos, films, tmp_path / "out", FEW)
    assert everything(tmp_path / name) == kept


def test_an_empty_folder_is_taken(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / ".composition.0badbeef.json").touch()
    compose(videos, open_backgrounds(behind), tmp_path / "out", FEW)
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"composition.json"}
    assert not list((tmp_path / "out").glob(".*"))


def test_too_little_footage(tmp_path: Path, videos: Dataset) -> None:
    stills = open_backgrounds(backgrounds(tmp_path / "stills", 1))
    with pytest.raises(
        DatasetError, match="fgr/0000 has 6 frames, 7 are wanted: ask for fewer with --frames"
    ):
        compose(videos, stills, tmp_path / "out", Rules(clips=1, frames=7))
    pictures(tmp_path / "films" / "walk", 0, 3)
    with pytest.raises(DatasetError, match="films/walk has 3 frames, 4 are wanted"):
        compose(videos, open_backgrounds(tmp_path / "films"), tmp_path / "out", FEW)
    assert not list(tmp_path.glob("out*"))


def test_composed_clips_hold_no_foregrounds(tmp_path: Path, behind: Path) -> None:
    with pytest.raises(DatasetError, match="rvm holds composed clips, no foregrounds"):
        compose(open_dataset(str(composed(tmp_path / "c"))), open_backgrounds(behind), tmp_path / "out", FEW)


def test_a_place_that_cannot_be_written(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(UnwritableError, match="cannot write"):
        compose(videos, open_backgrounds(behind), tmp_path / "plain" / "out", FEW)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20))
def test_blend_is_the_exact_floor(values: list[tuple[int, int, int]]) -> None:
    f, a, b = (torch.tensor(column, dtype=torch.uint8).view(1, 1, -1) for column in zip(*values, strict=True))
    mixed = blend(f.expand(3, -1, -1), a, b.expand(3, -1, -1))
    assert mixed[2, 0].tolist() == [(f * a + b * (255 - a)) // 255 for f, a, b in values]


def test_frames_come_back_as_they_were_written(tmp_path: Path, videos: Dataset, behind: Path) -> None:
    compose(videos, open_backgrounds(behind), tmp_path / "out", FEW)
    (clip, *rest) = open_dataset(str(tmp_path / "out")).clips
    assert len(rest) == 2 and clip.length == 4
    alpha = to_bytes(clip.read("alpha"))[:, 0].numpy()
    assert np.array_equal(alpha, stored(tmp_path / "out" / "0000" / "pha"))
