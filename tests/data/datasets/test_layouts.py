"""Data sets are found by their folders, or named; what is missing is said."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from mattecompress.data.datasets.footage import DatasetError
from mattecompress.data.datasets.layouts import LAYOUTS, find_dataset, open_dataset
from tests.data.datasets.folders import composed, distinctions, picture, pictures, videomatte


def test_videomatte_by_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        videomatte(tmp_path / "VideoMatte240K" / split)
    for source in ("VideoMatte240K/train", "VideoMatte240K/test"):
        found = open_dataset(str(tmp_path / source))
        assert found.layout.name == "videomatte240k"
        assert [clip.name for clip in found.clips] == ["0000", "0001"]
        assert found.clips[1].streams["alpha"] == tmp_path / source / "pha" / "0001"
    with pytest.raises(DatasetError, match="holds test and train: name one, such as .*VideoMatte240K/test"):
        open_dataset(str(tmp_path / "VideoMatte240K"))


def test_videos_as_files(tmp_path: Path) -> None:
    for name in ("fgr/10.mp4", "pha/10.mp4", "fgr/9.mp4", "pha/9.mp4", "pha/notes.txt", "fgr/._9.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [clip.name for clip in open_dataset(str(tmp_path)).clips] == ["9", "10"]


def test_pictures_of_two_suffixes(tmp_path: Path) -> None:
    found = open_dataset(str(distinctions(tmp_path)))
    assert found.layout.name == "distinctions-646"
    assert found.clips[0].streams == {
        "foreground": tmp_path / "FG" / "boy-0.jpg",
        "alpha": tmp_path / "GT" / "boy-0.png",
    }


def test_both_halves_of_the_adobe_set(tmp_path: Path) -> None:
    for part in ("Adobe-licensed images", "Other"):
        for role in ("fg", "alpha"):
            picture(tmp_path / "Training_set" / part / role / "man.png", 0)
    found = open_dataset(str(tmp_path / "Training_set"))
    assert found.layout.name == "aim"
    assert [clip.name for clip in found.clips] == ["Adobe-licensed images/man", "Other/man"]


def test_composed_pictures(tmp_path: Path) -> None:
    for role in ("merged", "alpha_copy", "trimaps"):
        picture(tmp_path / role / "girl_0.png", 0)
    found = open_dataset(str(tmp_path))
    assert found.layout.name == "composition-1k"
    assert set(found.clips[0].streams) == {"frames", "alpha"}


def test_composed_clips_at_any_depth(tmp_path: Path) -> None:
    composed(tmp_path / "videomatte_motion")
    composed(tmp_path / "videomatte_static", clips=1)
    shutil.rmtree(tmp_path / "videomatte_static" / "0000" / "fgr")
    found = open_dataset(str(tmp_path))
    assert found.layout.name == "rvm"
    assert [(clip.name, len(clip.streams)) for clip in found.clips] == [
        ("videomatte_motion/0000", 3),
        ("videomatte_motion/0001", 3),
        ("videomatte_static/0000", 2),
    ]
    (alone,) = open_dataset(str(tmp_path / "videomatte_motion" / "0001")).clips
    assert alone.name == "0001"


def test_a_layout_that_is_named(tmp_path: Path) -> None:
    composed(tmp_path, clips=1)
    named = open_dataset(f"videomatte240k:{tmp_path / '0000'}")
    assert named.layout.name == "videomatte240k"
    assert len(named.clips) == 3
    with pytest.raises(DatasetError, match="holds no FG/CLIP and GT/CLIP, the layout of distinctions-646"):
        open_dataset(f"distinctions-646:{tmp_path}")
    with pytest.raises(DatasetError, match="none: no such folder, the layout of rvm"):
        find_dataset(f"rvm:{tmp_path / 'none'}")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    pictures(tmp_path / "frames", 0, 2)
    for source in (tmp_path / "frames", tmp_path / "none", tmp_path / "frames" / "00000.png"):
        assert find_dataset(str(source)) is None
    with pytest.raises(DatasetError, match="none: no such folder"):
        open_dataset(str(tmp_path / "none"))
    with pytest.raises(DatasetError, match="frames: holds no data set; expected one of") as caught:
        open_dataset(str(tmp_path / "frames"))
    assert all(f"{layout.name}: {layout.form}" in str(caught.value) for layout in LAYOUTS.values())


def test_half_a_data_set(tmp_path: Path) -> None:
    videomatte(tmp_path)
    shutil.rmtree(tmp_path / "pha")
    message = "holds fgr but no pha beside it; videomatte240k has fgr/CLIP and pha/CLIP"
    with pytest.raises(DatasetError, match=message):
        find_dataset(str(tmp_path))
    picture(tmp_path / "still.png", 0)
    assert find_dataset(str(tmp_path)) is None


def test_a_folder_of_videos_beside_a_data_set_stays_one(tmp_path: Path) -> None:
    composed(tmp_path / "old")
    assert find_dataset(str(tmp_path)) is not None
    (tmp_path / "clip.mp4").touch()
    assert find_dataset(str(tmp_path)) is None
    assert find_dataset(f"rvm:{tmp_path}") is not None


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "closed").mkdir()
    genuine = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (refuse if path.name == "closed" else genuine)(path))
    with pytest.raises(DatasetError, match="closed: cannot be read"):
        find_dataset(str(tmp_path))


def test_a_clip_that_lacks_a_part(tmp_path: Path) -> None:
    videomatte(tmp_path, (2, 2, 2))
    shutil.rmtree(tmp_path / "pha" / "0001")
    with pytest.raises(DatasetError, match=r"pha: holds no 0001, which is in fgr beside it \(1 of 3 clips"):
        open_dataset(str(tmp_path))


def test_clips_of_one_name(tmp_path: Path) -> None:
    distinctions(tmp_path)
    picture(tmp_path / "FG" / "boy-1.png", 0)
    with pytest.raises(DatasetError, match=r"boy-1\.(jpg|png) and boy-1\.(jpg|png) have one name"):
        open_dataset(str(tmp_path))


def test_no_clips(tmp_path: Path) -> None:
    for role in ("fgr", "pha"):
        (tmp_path / role).mkdir()
    with pytest.raises(DatasetError, match="holds no clips: videomatte240k has fgr/CLIP and pha/CLIP"):
        open_dataset(str(tmp_path))
