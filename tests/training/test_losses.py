"""The losses against their equations, computed another way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.training.losses import (
    coherence_loss,
    evolution_loss,
    laplacian_loss,
    laplacian_pyramid,
    matting_loss,
    mimicking_loss,
    segmentation_loss,
)

SHAPE = (2, 3, 1, 96, 80)


def clip(seed: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE[0], SHAPE[1], channels, *SHAPE[3:], generator=generator, dtype=torch.float64)


def blur_directly(image: np.ndarray) -> np.ndarray:
    """The 5x5 binomial kernel over reflected borders, tap by tap."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    padded = np.pad(image, 2, mode="reflect")
    height, width = image.shape
    taps = [(i, j) for i in range(5) for j in range(5)]
    return sum(kernel[i, j] * padded[i : i + height, j : j + width] for i, j in taps)


def band_directly(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    smaller = blur_directly(image)[::2, ::2]
    sparse = np.zeros_like(image)
    sparse[::2, ::2] = 4 * smaller
    return image - blur_directly(sparse), smaller


def test_laplacian_pyramid_is_that_of_the_equation() -> None:
    image = clip(0)[0, 0, 0].numpy()
    bands = laplacian_pyramid(torch.from_numpy(image)[None, None], levels=3)
    for band in bands:
        expected, image = band_directly(image)
        np.testing.assert_allclose(band[0, 0].numpy(), expected, atol=1e-14)


def test_laplacian_levels_are_weighted_by_powers_of_two() -> None:
    a, b = clip(0).flatten(0, 1), clip(1).flatten(0, 1)
    pairs = zip(laplacian_pyramid(a), laplacian_pyramid(b), strict=True)
    expected = sum(2**s * (p - q).abs().mean() for s, (p, q) in enumerate(pairs)) / 5
    torch.testing.assert_close(laplacian_loss(a, b), expected)


def test_odd_sizes_are_cut() -> None:
    bands = laplacian_pyramid(torch.rand(1, 1, 99, 165))
    sizes = [(98, 164), (48, 82), (24, 40), (12, 20), (6, 10)]
    assert [tuple(band.shape[-2:]) for band in bands] == sizes


def test_constant_difference_has_no_laplacian_but_the_alpha_term_sees_it() -> None:
    a = clip(0)
    assert laplacian_loss(a.flatten(0, 1) + 0.25, a.flatten(0, 1)).item() == pytest.approx(0, abs=1e-12)
    terms = matting_loss(clip(1, 3), a + 0.25, clip(1, 3), a)
    assert terms["alpha_l1"].item() == pytest.approx(0.25)
    assert terms["alpha_coherence"].item() == pytest.approx(0, abs=1e-12)


def test_coherence_is_five_times_the_error_of_changes() -> None:
    a, b = clip(0), clip(1)
    changes = [(b[:, t] - b[:, t - 1]) - (a[:, t] - a[:, t - 1]) for t in (1, 2)]
    expected = 5 * torch.stack(changes).square().mean()
    terms = matting_loss(clip(2, 3), b, clip(2, 3), a)
    torch.testing.assert_close(terms["alpha_coherence"], expected)


def test_foreground_counts_only_where_alpha_is() -> None:
    true_alpha = clip(0)
    true_alpha[..., :40] = 0
    true, predicted = clip(1, 3), clip(1, 3)
    predicted[..., :40] += 1
    assert matting_loss(predicted, true_alpha, true, true_alpha)["total"].item() == 0
    predicted[..., 40:] += 0.5
    terms = matting_loss(predicted, true_alpha, true, true_alpha)
    assert terms["foreground_l1"].item() == pytest.approx(0.25)


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_losses_are_distances(first: int, second: int) -> None:
    a, b = clip(first), clip(second)
    f, g = clip(first + 1, 3), clip(second + 1, 3)
    assert matting_loss(f, a, f, a)["total"].item() == 0
    terms = matting_loss(g, b, f, a)
    assert all(term.item() >= 0 for term in terms.values())
    assert terms["total"].item() == pytest.approx(sum(v.item() for k, v in terms.items() if k != "total"))


def test_one_frame_has_no_coherence() -> None:
    assert coherence_loss(clip(0)[:, :1], clip(1)[:, :1]).item() == 0


def test_gradient_reaches_both_predictions() -> None:
    fgr, pha = clip(0, 3).requires_grad_(), clip(1).requires_grad_()
    matting_loss(fgr, pha, clip(2, 3), clip(3))["total"].backward()
    assert fgr.grad.abs().sum() > 0
    assert pha.grad.abs().sum() > 0


def test_segmentation_is_binary_cross_entropy() -> None:
    logits, mask = clip(0) * 4 - 2, (clip(1) > 0.5).double()
    p = torch.sigmoid(logits)
    expected = -(mask * p.log() + (1 - mask) * (1 - p).log()).mean()
    torch.testing.assert_close(segmentation_loss(logits, mask), expected)


def test_mimicking_sums_norms_under_the_mask() -> None:
    ours = [torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 3, 2, 2, requires_grad=True)]
    theirs = [torch.ones(1, 2, 4, 4, requires_grad=True), torch.ones(1, 3, 2, 2)]
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None].requires_grad_()
    loss = mimicking_loss(ours[1:], theirs[1:], left)
    assert loss.item() == pytest.approx(6**0.5)
    assert mimicking_loss(ours, theirs, None).item() == pytest.approx(32**0.5 + 12**0.5)
    bilinear = F.interpolate(left, (4, 4), mode="bilinear", align_corners=False)
    whole = mimicking_loss(ours, theirs, left)
    assert whole.item() == pytest.approx((2 * bilinear.square().sum()).sqrt().item() + 6**0.5)
    whole.backward()
    assert theirs[0].grad is None and left.grad is None
    assert (ours[1].grad[..., 0] < 0).all() and (ours[1].grad[..., 1] == 0).all()


def test_mimicking_of_equal_features_has_no_gradient() -> None:
    features = torch.ones(1, 2, 3, 3, requires_grad=True)
    loss = mimicking_loss([features], [features], None)
    loss.backward()
    assert loss.item() == 0 and torch.equal(features.grad, torch.zeros_like(features))


def test_evolution_sums_squares() -> None:
    factors = [torch.tensor(0.5, requires_grad=True), torch.tensor(-2.0, requires_grad=True)]
    loss = evolution_loss(factors)
    loss.backward()
    assert loss.item() == 4.25 and [factor.grad.item() for factor in factors] == [1.0, -4.0]
