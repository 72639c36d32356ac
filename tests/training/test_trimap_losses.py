"""Laws of the losses of networks with a trimap."""

import pytest
import torch

from mattecompress.training.trimap_losses import (
    compression_loss,
    distillation_loss,
    gradient_loss,
    masked_mean,
    trimap_matting_loss,
)


def pictures(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    alpha, true = torch.rand(2, batch, 1, 64, 96, generator=generator)
    trimap = torch.randint(0, 3, true.shape, generator=generator) / 2
    return alpha, true, trimap


def test_total_is_the_sum_of_four_terms() -> None:
    terms = trimap_matting_loss(*pictures())
    total = terms.pop("total")
    assert list(terms) == ["unknown_l1", "known_l1", "laplacian", "gradient"]
    torch.testing.assert_close(total, sum(terms.values()))


def test_l1_is_the_papers_scaled_mean() -> None:
    alpha, true, trimap = pictures()
    for name, mask in (("unknown_l1", trimap == 0.5), ("known_l1", trimap != 0.5)):
        scale = mask.numel() / mask.sum()
        expected = (mask * (alpha - true)).abs().mean() * scale
        torch.testing.assert_close(trimap_matting_loss(alpha, true, trimap)[name], expected)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_trimaps_of_one_value_give_finite_losses(value: float) -> None:
    alpha, true, trimap = pictures()
    terms = trimap_matting_loss(alpha, true, torch.full_like(trimap, value))
    assert all(term.isfinite() for term in terms.values())
    assert terms["known_l1" if value == 0.5 else "unknown_l1"] == 0


def test_gradient_of_a_ramp() -> None:
    """Across a ramp of slope 1/100 the Sobel filter gives 8/100; inside, where no padding is seen."""
    ramp = (torch.arange(64.0) / 100).expand(1, 1, 64, 64)
    inside = torch.zeros_like(ramp)
    inside[..., 1:-1, 1:-1] = 1
    torch.testing.assert_close(gradient_loss(ramp, 0 * ramp, inside), torch.tensor(0.08 * 1.01))
    torch.testing.assert_close(gradient_loss(ramp, ramp, inside), torch.tensor(0.08 * 0.01))


def test_a_batch_weighs_its_pixels_alike() -> None:
    values = torch.arange(4.0).view(2, 1, 1, 2)
    mask = torch.tensor([1.0, 0, 1, 1]).view(2, 1, 1, 2)
    assert masked_mean(values, mask) == 5 / 3
    assert masked_mean(values, 0 * mask) == 0


def test_what_routing_adds() -> None:
    ours, theirs = (torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(2))
    distillation_loss(ours, theirs).backward()
    assert ours.grad is not None and theirs.grad is None
    torch.testing.assert_close(compression_loss(torch.tensor(0.75), 0.25), torch.tensor(0.25))
