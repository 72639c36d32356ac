from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.ops import reproducible

matte = torch.ops.matte
fractions = st.integers(-(2**20), 2**20).map(lambda n: n / 2**12)


def ulps(given: torch.Tensor, exact: torch.Tensor) -> float:
    step = np.spacing(exact.abs().float().numpy())
    return float(((given.double() - exact).abs().numpy() / step).max())


@pytest.mark.parametrize(
    ("function", "exact", "bound", "most"),
    [
        (reproducible.exp, torch.exp, 80, 2),
        (matte.sigmoid, torch.sigmoid, 80, 3),
        (matte.tanh, torch.tanh, 20, 2),
    ],
)
def test_units_in_the_last_place(function, exact, bound: float, most: float) -> None:
    x = torch.cat([torch.linspace(-bound, bound, 50_001), torch.linspace(-2, 2, 50_001)])
    assert ulps(function(x), exact(x.double())) <= most


def test_ends() -> None:
    x = torch.tensor([-torch.inf, -3e38, -100.0, 0.0, -0.0, 100.0, 3e38, torch.inf])
    assert torch.equal(matte.tanh(x), torch.tensor([-1.0, -1, -1, 0, 0, 1, 1, 1]))
    assert torch.allclose(matte.sigmoid(x), torch.tensor([0.0, 0, 0, 0.5, 0.5, 1, 1, 1]), atol=1e-37)
    assert matte.sigmoid(torch.tensor([torch.nan])).isnan().all()
    assert matte.tanh(torch.tensor([torch.nan])).isnan().all()


def test_tanh_is_odd() -> None:
    x = torch.linspace(-12, 12, 10_001)
    assert torch.equal(matte.tanh(-x), -matte.tanh(x))


def test_exp_is_exact_at_powers_of_two() -> None:
    """Every n that occurs: 2**n scales, and rounds nothing."""
    x = (torch.arange(-125, 127) * np.log(2)).float()
    assert ulps(reproducible.exp(x), x.double().exp()) <= 2


@settings(deadline=None)
@given(fractions, fractions, fractions)
def test_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    result = float(reproducible.multiply_add(torch.tensor(a), torch.tensor(b), c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    neighbours = [np.nextafter(np.float32(result), np.float32(end)) for end in (-np.inf, np.inf)]
    assert all(abs(Fraction(result) - exact) <= abs(Fraction(float(n)) - exact) for n in neighbours)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 19), st.integers(1, 19))
def test_plane_mean_adds_along_rows_first(batch: int, channels: int, height: int, width: int) -> None:
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height * width))
    result = matte.plane_mean(x)
    assert result.shape == (batch, channels, 1, 1)
    for n in range(batch):
        for c in range(channels):
            total = np.float32(0)
            for row in x[n, c].numpy():
                line = np.float32(0)
                for value in row:
                    line = line + value
                total = total + line
            assert float(result[n, c]) == total / np.float32(height * width)
