from pathlib import Path

import pytest
import torch
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.data.colours import ColourError
from mattecompress.data.frames import MediaError, to_bytes
from mattecompress.data.sources import clip_inputs, load_clips
from mattecompress.data.trimaps import TrimapError
from mattecompress.data.video import read_frames, write_frames
from mattecompress.matting import matte_clip
from mattecompress.measuring.evaluation import predict
from mattecompress.models.signatures import trimap_signature
from mattecompress.preparation import ResolutionError, fix_size
from mattecompress.program import Program
from mattecompress.running.stream import Stream


@pytest.fixture(scope="module")
def network(tiny_open: Program) -> Program:
    return fix_size(tiny_open, (16, 24))


def test_frames_go_through_one_by_one(network: Program, tmp_path: Path) -> None:
    write_frames(tmp_path / "in", torch.rand(4, 3, 16, 24))
    seen: list[tuple[int, int, str]] = []
    (made,) = matte_clip(
        network, network.run, str(tmp_path / "in"), tmp_path / "out", progress=lambda *at: seen.append(at)
    )
    assert seen == [(number, 4, "frames") for number in range(1, 5)]
    frames = torch.stack(list(read_frames(tmp_path / "in")))
    expected = [output["pha"][0] for output in Stream(network).over(frames)]
    for alpha, written in zip(expected, read_frames(made), strict=True):
        assert torch.equal(to_bytes(alpha), to_bytes(written[:1]))


def test_procedural_clips_and_a_composite(network: Program, tmp_path: Path) -> None:
    made = matte_clip(network, network.run, "procedural:4", tmp_path / "a.y4m", "#ff0000", frames=2)
    assert [path.name for path in made] == ["a.y4m", "a-composite.y4m"]
    assert [len(list(read_frames(path))) for path in made] == [2, 2]


def test_a_failure_leaves_nothing(network: Program, tmp_path: Path) -> None:
    def fail(**_: object) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        matte_clip(network, fail, "procedural", tmp_path / "a.y4m", "#ff0000", frames=1)
    assert not list(tmp_path.iterdir())


def test_refuses(network: Program, tiny_open: Program, tmp_path: Path) -> None:
    with pytest.raises(ResolutionError, match="the size of tiny is open"):
        matte_clip(tiny_open, tiny_open.run, "procedural", tmp_path / "a.y4m")
    with pytest.raises(ColourError):
        matte_clip(network, network.run, "procedural", tmp_path / "a.y4m", "red")
    with pytest.raises(MediaError, match="no such file"):
        matte_clip(network, network.run, str(tmp_path / "none.mp4"), tmp_path / "a.y4m")
    write_frames(tmp_path / "b-composite.y4m", torch.rand(1, 3, 16, 24))
    with pytest.raises(MediaError, match="overwrite"):
        matte_clip(network, network.run, str(tmp_path / "b-composite.y4m"), tmp_path / "b.y4m", "#ff0000")


class Halves(nn.Module):
    """Alpha is half the brightness and half the trimap."""

    def forward(self, image: torch.Tensor, trimap: torch.Tensor) -> torch.Tensor:
        return (image.mean(1, keepdim=True) + trimap) / 2


@pytest.fixture(scope="module")
def halves() -> Program:
    return capture(Halves(), trimap_signature((16, 24)), "halves")


def test_a_trimap_goes_with_each_frame(halves: Program, tmp_path: Path) -> None:
    frames, trimaps = torch.ones(2, 3, 16, 24), torch.tensor([0.0, 1.0]).expand(16, 12, 2).reshape(16, 24)
    write_frames(tmp_path / "in", frames)
    write_frames(tmp_path / "known", trimaps.expand(2, 1, 16, 24))
    matte_clip(halves, halves.run, str(tmp_path / "in"), tmp_path / "out", trimap=str(tmp_path / "known"))
    for written in read_frames(tmp_path / "out"):
        assert torch.equal(to_bytes(written[0]), to_bytes((1 + trimaps) / 2))


def test_the_trimap_is_not_overwritten(halves: Program, tmp_path: Path) -> None:
    for name in ("p.png", "t.png", "a-composite.png"):
        write_frames(tmp_path / name, torch.rand(1, 3, 16, 24))
    picture, known = tmp_path / "p.png", tmp_path / "t.png"
    with pytest.raises(MediaError, match=r"t\.png: the matte would overwrite the trimap"):
        matte_clip(halves, halves.run, str(picture), known, trimap=str(known))
    beside = str(tmp_path / "a-composite.png")
    with pytest.raises(MediaError, match=r"composite\.png: the matte would overwrite the trimap"):
        matte_clip(halves, halves.run, str(picture), tmp_path / "a.png", "#ff0000", trimap=beside)
    matte_clip(halves, halves.run, str(picture), tmp_path / "a.png", trimap=beside)


def test_procedural_clips_have_their_trimap(halves: Program, tmp_path: Path) -> None:
    matte_clip(halves, halves.run, "procedural", tmp_path / "out", frames=2)
    (clip,) = load_clips("procedural", (16, 24), 1, 2)
    inputs = clip_inputs(halves, clip)
    alphas, _ = predict(halves, halves.run, clip)
    assert torch.equal(alphas, halves.run(**inputs)["alpha"])
    for alpha, written in zip(alphas, read_frames(tmp_path / "out"), strict=True):
        assert torch.equal(to_bytes(alpha), to_bytes(written[:1]))


def test_trimaps_are_asked_for_and_refused(halves: Program, network: Program, tmp_path: Path) -> None:
    write_frames(tmp_path / "p.png", torch.rand(1, 3, 16, 24))
    picture = str(tmp_path / "p.png")
    with pytest.raises(TrimapError, match="halves takes a trimap with each frame: add --trimap"):
        matte_clip(halves, halves.run, picture, tmp_path / "a.png")
    with pytest.raises(TrimapError, match="tiny takes no trimap with each frame: leave it out"):
        matte_clip(network, network.run, picture, tmp_path / "a.png", trimap=picture)
    with pytest.raises(TrimapError, match="procedural clips come with their trimap: leave --trimap out"):
        matte_clip(halves, halves.run, "procedural:1", tmp_path / "a.png", trimap=picture)
    with pytest.raises(TrimapError, match="alpha of p .* is unknown"):
        clip_inputs(halves, next(load_clips(picture, None, None, None)))
