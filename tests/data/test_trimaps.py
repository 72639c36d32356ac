from pathlib import Path

import pytest
import torch

from mattecompress.data.frames import MediaError
from mattecompress.data.trimaps import make_trimap, read_trimaps
from mattecompress.data.video import write_frames


def test_unknown_is_what_lies_near_an_edge() -> None:
    alpha = torch.zeros(1, 1, 1, 12)
    alpha[..., 6:] = 1
    assert make_trimap(alpha, radius=2).flatten().tolist() == [0] * 4 + [0.5] * 4 + [1] * 4
    alpha[..., 6] = 0.25
    assert make_trimap(alpha, radius=1).flatten().tolist() == [0] * 5 + [0.5] * 3 + [1] * 4


def test_certain_everywhere_stays_so() -> None:
    for value in (0.0, 1.0):
        alpha = torch.full((2, 1, 5, 7), value)
        assert torch.equal(make_trimap(alpha), alpha)


def test_reading_brings_no_new_values(tmp_path: Path) -> None:
    trimap = torch.randint(0, 3, (2, 1, 8, 12)) / 2
    write_frames(tmp_path / "trimaps", trimap)
    write_frames(tmp_path / "frames", torch.rand(2, 3, 8, 12))
    read = list(read_trimaps(str(tmp_path / "trimaps"), tmp_path / "frames", (5, 9)))
    assert [frame.shape for frame in read] == [(1, 5, 9)] * 2
    assert set((torch.stack(read) * 255).round().unique().tolist()) <= {0.0, 127.0, 255.0}


def test_trimaps_of_other_pictures_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "t.png", torch.rand(1, 1, 8, 12))
    write_frames(tmp_path / "p.png", torch.rand(1, 3, 9, 12))
    with pytest.raises(MediaError, match="t.png: height 8, but .*p.png has 9"):
        read_trimaps(str(tmp_path / "t.png"), tmp_path / "p.png", None)
