import pytest
import torch

from mattecompress.reconstruction.samples import drawn


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_draws_a_share(share: float) -> None:
    chosen = drawn((3, 7, 1001), share, torch.Generator().manual_seed(0))
    assert chosen.shape == (3, 7, 1001) and set(chosen.unique().tolist()) <= {0.0, 1.0}
    assert chosen.mean().item() == pytest.approx(share, abs=0.01)


def test_neighbours_are_drawn_apart() -> None:
    """Eight elements share a random number: none tells of another."""
    chosen = drawn((8000, 8), 0.5, torch.Generator().manual_seed(0)) - 0.5
    correlations = (chosen.T @ chosen) / (8000 * 0.25)
    assert (correlations - torch.eye(8)).abs().max() < 0.06


def test_the_generator_decides() -> None:
    one, same, other = (drawn((5, 9), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
