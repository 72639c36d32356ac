import builtins
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mattecompress.data.clips import procedural_clip
from mattecompress.errors import MissingExtraError
from mattecompress.models.raft import load_raft
from mattecompress.optical_flow import dis_flow, raft_flow
from mattecompress.reconstruction.unrolled import warp


def moving() -> torch.Tensor:
    """A smooth texture that goes 3 pixels right and 1 down with each of three frames."""
    small = torch.rand(1, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    texture = F.interpolate(small, (80, 104), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([texture[:, 8 - t : 72 - t, 12 - 3 * t : 92 - 3 * t] for t in range(3)])


def test_finds_where_each_pixel_came_from() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    frames = moving()
    flow = dis_flow(frames)
    assert flow.shape == (2, 2, 64, 80)
    inner = flow[:, :, 16:-16, 16:-16]
    assert inner[:, 0].median().item() == pytest.approx(-3, abs=0.3)
    assert inner[:, 1].median().item() == pytest.approx(-1, abs=0.3)
    warped = warp(frames[:-1], flow)[:, :, 16:-16, 16:-16]
    still = (frames[1:] - frames[:-1])[:, :, 16:-16, 16:-16].abs().mean()
    assert (warped - frames[1:, :, 16:-16, 16:-16]).abs().mean() < 0.2 * still


def test_one_frame_has_no_motion() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    assert dis_flow(moving()[:1]).shape == (0, 2, 64, 80)


def test_raft_finds_where_each_pixel_came_from(raft_weights: Path) -> None:
    frames, network = moving(), load_raft(raft_weights)
    flow = raft_flow(frames, network)
    assert flow.shape == (2, 2, 64, 80)
    inner = flow[:, :, 16:-16, 16:-16]
    assert inner[:, 0].median().item() == pytest.approx(-3, abs=0.5)
    assert inner[:, 1].median().item() == pytest.approx(-1, abs=0.5)
    assert raft_flow(frames[:1], network).shape == (0, 2, 64, 80)


def test_raft_and_dis_agree_on_direction(raft_weights: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    frames = procedural_clip(0, 0, 3, 144, 192).frames
    searched, refined = dis_flow(frames), raft_flow(frames, load_raft(raft_weights))
    moves = searched.norm(dim=1) > 1
    assert moves.float().mean() > 0.25
    assert torch.cosine_similarity(searched, refined, dim=1)[moves].median() > 0.95


def test_says_how_to_install_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "cv2":
            raise ModuleNotFoundError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"mattecompress\[flow\]"):
        dis_flow(moving())
