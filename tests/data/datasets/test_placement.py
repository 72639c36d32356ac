import numpy as np
import pytest
import torch

from mattecompress.data.datasets.placement import LIMITS, Motion, cover, fit_inside, sample_motion

STILL = np.zeros(6)


def placed(**changes: float) -> np.ndarray:
    names = ("rotation", "right", "down", "growth", "across", "along")
    return np.array([changes.get(name, 0.0) for name in names])


def test_no_motion_changes_nothing() -> None:
    picture = torch.rand(3, 9, 14, dtype=torch.float64)
    assert torch.allclose(Motion(STILL, STILL).move(picture, 0.3), picture, atol=1e-12)


def test_shifts_go_right_and_down_from_zero() -> None:
    picture = torch.rand(1, 10, 20, dtype=torch.float64)
    motion = Motion(STILL, placed(right=0.1, down=0.2))
    assert torch.allclose(motion.move(picture, 0), picture, atol=1e-12)
    moved = motion.move(picture, 1)
    assert torch.allclose(moved[:, 2:, 2:], picture[:, :-2, :-2], atol=1e-12)
    assert not moved[:, :2].any() and not moved[:, :, :2].any()
    half = motion.move(picture, 0.5)
    assert torch.allclose(half[:, 1:, 1:], picture[:, :-1, :-1], atol=1e-12)


def test_rotation_turns_and_growth_enlarges_about_the_centre() -> None:
    picture = torch.rand(1, 9, 9, dtype=torch.float64)
    turned = Motion(placed(rotation=90), STILL).move(picture, 0)
    assert torch.allclose(turned, torch.rot90(picture, -1, (1, 2)), atol=1e-9)
    grown = Motion(placed(growth=1), STILL).move(picture, 0)
    assert torch.allclose(grown[:, ::2, ::2], picture[:, 2:7, 2:7], atol=1e-12)


def test_shear_moves_rows_apart() -> None:
    picture = torch.rand(1, 9, 9, dtype=torch.float64)
    sheared = Motion(placed(across=45), STILL).move(picture, 0)
    assert torch.allclose(sheared[:, 4], picture[:, 4], atol=1e-9)
    assert torch.allclose(sheared[:, 6, 2:], picture[:, 6, :-2], atol=1e-9)


def test_motions_keep_to_their_limits() -> None:
    rng = np.random.default_rng(0)
    motions = [sample_motion(rng) for _ in range(500)]
    ends = np.abs([end for motion in motions for end in (motion.begin, motion.end)]) / LIMITS
    assert 0.95 < ends.max() <= 1
    assert ends.max(axis=1).min() < 0.05, "some motions are weak in everything"


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((20, 10), (0, 8), (2, 6)), ((5, 10), (2, 6), (0, 8))]
)
def test_fit_inside(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    fitted = fit_inside(torch.ones(3, *shape), (8, 8))
    inside = torch.zeros(3, 8, 8)
    inside[:, slice(*rows), slice(*columns)] = 1
    assert torch.allclose(fitted, inside)


def test_cover() -> None:
    picture = torch.arange(40.0).expand(1, 10, 40) / 40
    assert torch.equal(cover(picture, (10, 20)), picture[:, :, 10:30])
    assert torch.equal(cover(picture, (10, 20), place=(0, 1)), picture[:, :, 20:])
    assert cover(picture, (10, 20), zoom=1.5, place=(0.3, 0.9)).shape == (1, 10, 20)
    assert cover(torch.rand(1, 7, 5), (33, 21)).shape == (1, 33, 21)
