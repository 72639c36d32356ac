import pytest
import torch

from mattecompress.data.frames import composite, from_bytes, resize, to_bytes


def test_every_byte_survives():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(values)), values)


def test_bytes_are_truncated_and_clamped():
    assert to_bytes(torch.tensor([-0.5, 0.0, 0.9999, 0.5, 1.0, 7.0])).tolist() == [0, 0, 254, 127, 255, 255]


def test_resize_averages_and_keeps_constants():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(3, 64, 64)
    small = resize(stripes, (8, 8))
    assert small.shape == (3, 8, 8)
    assert small[..., 1:-1] == pytest.approx(torch.full((3, 8, 6), 0.5), abs=0.05)
    assert torch.allclose(resize(torch.full((1, 7, 9), 0.3), (20, 5)), torch.tensor(0.3))


def test_resize_to_the_same_size_changes_nothing():
    frame = torch.rand(3, 5, 6)
    assert resize(frame, (5, 6)) is frame


@pytest.mark.parametrize(
    "background", [torch.tensor([0.0, 0.5, 1.0]), torch.rand(3, 4, 5), torch.rand(2, 3, 4, 5)]
)
def test_composite_is_the_law(background):
    alpha, foreground = torch.rand(2, 1, 4, 5), torch.rand(2, 3, 4, 5)
    behind = background.view(3, 1, 1) if background.ndim == 1 else background
    assert torch.equal(composite(alpha, foreground, background), foreground * alpha + behind * (1 - alpha))
