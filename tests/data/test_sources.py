from pathlib import Path

import pytest
import torch

from mattecompress.data.clips import procedural_clip
from mattecompress.data.datasets.footage import DatasetError
from mattecompress.data.frames import MediaError, to_bytes
from mattecompress.data.sources import DEFAULT_SIZE, absolute_source, load_clips, procedural_seed, source_size
from mattecompress.data.video import read_frames, write_frames
from tests.data.datasets.folders import composed, videomatte


def test_procedural_clips() -> None:
    first, second = load_clips("procedural:5", (16, 24), clips=2, frames=2)
    made = procedural_clip(5, 1, 2, 16, 24)
    assert (first.name, second.name) == ("procedural-5-0", "procedural-5-1")
    for ours, theirs in ((second.frames, made.frames), (second.alpha, made.alpha)):
        assert ours is not None and torch.equal(ours, theirs)
    assert source_size("procedural:5") == DEFAULT_SIZE


def test_seeds() -> None:
    assert [procedural_seed(text) for text in ("procedural", "procedural:12", "clip.mp4", "a:1")] == [
        0,
        12,
        None,
        None,
    ]
    for text in ("procedural:", "procedural:x", "procedural:-1", "procedural:1:2"):
        with pytest.raises(MediaError, match="expected a number"):
            procedural_seed(text)


def test_too_small_for_procedural_clips() -> None:
    with pytest.raises(MediaError, match="at least 16, not 12x16"):
        list(load_clips("procedural", (12, 16), 1, 1))


def test_a_video_is_cut_into_clips(tmp_path: Path) -> None:
    frames = torch.rand(5, 3, 8, 12)
    write_frames(tmp_path / "v.y4m", frames)
    source = str(tmp_path / "v.y4m")
    pieces = list(load_clips(source, None, clips=4, frames=2))
    assert [(piece.name, len(piece.frames)) for piece in pieces] == [("v-0", 2), ("v-1", 2), ("v-2", 1)]
    (whole,) = load_clips(source, None, clips=1, frames=None)
    assert torch.equal(torch.cat([piece.frames for piece in pieces]), whole.frames)
    assert whole.alpha is None
    assert source_size(source) == (8, 12)


def test_a_folder_of_videos(tmp_path: Path) -> None:
    for name in ("b.Y4M", "a.y4m", "c.y4m"):
        write_frames(tmp_path / name, torch.rand(2, 3, 8, 12))
    (tmp_path / "._a.y4m").write_bytes(b"left by an archive")
    clips = list(load_clips(str(tmp_path), (4, 6), clips=2, frames=1))
    assert [clip.name for clip in clips] == ["a", "b"]
    assert clips[0].frames.shape == (1, 3, 4, 6)
    assert source_size(str(tmp_path)) == (8, 12)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    frames = torch.rand(3, 3, 8, 12)
    write_frames(tmp_path / "p", frames)
    (clip,) = load_clips(str(tmp_path / "p"), None, clips=4, frames=2)
    assert torch.equal(to_bytes(clip.frames), to_bytes(frames[:2]))
    assert source_size(str(tmp_path / "p" / "000000.png")) == (8, 12)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for name in ("none.mp4", "empty", "bad.mp4"):
        for clips in (1, 3):
            with pytest.raises(MediaError, match=name):
                list(load_clips(str(tmp_path / name), None, clips, 2))
        with pytest.raises(MediaError, match=name):
            source_size(str(tmp_path / name))


def test_a_data_set_of_composed_clips(tmp_path: Path) -> None:
    source = str(composed(tmp_path / "set", clips=3, frames=4))
    clips = list(load_clips(source, None, clips=None, frames=None))
    assert [(clip.name, len(clip.frames)) for clip in clips] == [("0000", 4), ("0001", 4), ("0002", 4)]
    assert clips[0].alpha is not None and clips[0].foreground is not None
    (alpha,) = read_frames(tmp_path / "set" / "0000" / "pha" / "00000.png")
    assert torch.equal(clips[0].alpha[0], alpha[:1])
    (first,) = load_clips(f"rvm:{source}", (6, 8), clips=1, frames=2)
    assert first.foreground is not None
    assert first.frames.shape == first.foreground.shape == (2, 3, 6, 8)
    assert source_size(source) == (12, 16)


def test_clips_of_a_data_set_are_read_one_by_one(tmp_path: Path) -> None:
    composed(tmp_path)
    (tmp_path / "0001" / "com" / "00000.png").write_bytes(b"no picture")
    clips = load_clips(str(tmp_path), None, clips=None, frames=None)
    assert next(clips).name == "0000"
    with pytest.raises(MediaError, match="0001/com/00000.png"):
        next(clips)


def test_foregrounds_have_to_be_composed_first(tmp_path: Path) -> None:
    for read in (source_size, lambda source: load_clips(source, None, 1, 1)):
        with pytest.raises(
            DatasetError, match="foregrounds without backgrounds: .* `mattecompress compose .*set "
        ):
            read(str(videomatte(tmp_path / "set")))


def test_sources_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    composed(tmp_path / "set")
    for source in ("procedural:3", "none.mp4", "rvm:none"):
        assert absolute_source(source) == source
    assert absolute_source("set") == str(tmp_path / "set")
    assert absolute_source("rvm:set") == f"rvm:{tmp_path / 'set'}"
