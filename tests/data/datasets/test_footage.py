from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mattecompress.data.datasets.footage import DatasetError, Footage, fingerprint, open_backgrounds
from mattecompress.data.datasets.layouts import open_dataset
from mattecompress.data.frames import MediaError
from mattecompress.data.video import write_frames
from tests.data.datasets.folders import backgrounds, picture, pictures, videomatte


def test_any_piece_of_a_clip(tmp_path: Path) -> None:
    clip = open_dataset(str(videomatte(tmp_path))).clips[0]
    assert clip.length == 6
    alpha = clip.read("alpha", start=2, count=3)
    stored = [np.array(Image.open(tmp_path / "pha" / "0000" / f"{number:05d}.png")) for number in (2, 3, 4)]
    assert torch.equal(alpha, torch.from_numpy(np.stack(stored))[:, None] / 255)
    assert clip.read("foreground", size=(6, 8)).shape == (6, 3, 6, 8)
    assert torch.equal(clip.read("foreground")[2:5], clip.read("foreground", 2, 3))


def test_a_piece_of_a_video(tmp_path: Path) -> None:
    for suffix in (".y4m", ".mp4"):
        path = tmp_path / f"v{suffix}"
        write_frames(path, torch.rand(5, 3, 8, 12))
        clip = Footage("v", {"frames": path})
        assert clip.length == 5
        assert torch.equal(clip.read("frames")[3:], clip.read("frames", start=3))


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    clip = open_dataset(str(videomatte(tmp_path))).clips[0]
    (tmp_path / "fgr" / "0000" / "00003.png").write_bytes(b"no picture")
    assert len(clip.read("foreground", count=3)) == 3
    assert len(clip.read("foreground", start=4)) == 2
    with pytest.raises(MediaError, match=r"00003\.png: not a picture"):
        clip.read("foreground")


def test_streams_of_different_lengths(tmp_path: Path) -> None:
    videomatte(tmp_path)
    (tmp_path / "pha" / "0001" / "00007.png").unlink()
    clip = open_dataset(str(tmp_path)).clips[1]
    with pytest.raises(DatasetError, match=r"fgr/0001 has 8, .*pha/0001 has 7; copy the clip again"):
        _ = clip.length


def test_more_frames_than_there_are(tmp_path: Path) -> None:
    clip = Footage("v", {"frames": pictures(tmp_path / "v", 0, 3)})
    with pytest.raises(DatasetError, match="ends after 3 frames"):
        clip.read("frames", start=1, count=4)


def test_backgrounds(tmp_path: Path) -> None:
    backgrounds(tmp_path, stills=1, videos=1)
    pictures(tmp_path / "walk", 0, 4)
    (tmp_path / "read me.txt").touch()
    found = open_backgrounds(tmp_path)
    assert [(one.name, one.length) for one in found] == [("film-0", 8), ("still-0", 1), ("walk", 4)]


def test_no_backgrounds(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder; name one"):
        open_backgrounds(tmp_path / "none")
    with pytest.raises(DatasetError, match="holds no pictures"):
        open_backgrounds(tmp_path)


def test_a_fingerprint_is_of_names_and_sizes_and_not_of_places(tmp_path: Path) -> None:
    here, there = (open_dataset(str(videomatte(tmp_path / name))) for name in ("here", "there"))
    assert fingerprint(here.clips) == fingerprint(there.clips)
    assert fingerprint(here.clips) != fingerprint(here.clips[:1])
    (tmp_path / "there" / "fgr" / "0000" / ".DS_Store").touch()
    assert fingerprint(here.clips) == fingerprint(there.clips)
    picture(tmp_path / "there" / "fgr" / "0000" / "00003.png", 0, 24, 32)
    assert fingerprint(here.clips) != fingerprint(there.clips)
    pictures(tmp_path / "there" / "fgr" / "0000", 0, 6)
    assert fingerprint(here.clips) == fingerprint(there.clips)
    (tmp_path / "there" / "fgr" / "0000" / "00003.png").unlink()
    assert fingerprint(here.clips) != fingerprint(there.clips)
