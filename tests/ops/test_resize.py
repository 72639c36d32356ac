import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mattecompress.ops.resize import phases, taps

matte = torch.ops.matte
sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))


@settings(deadline=None)
@given(sizes, sizes, st.booleans())
def test_is_torchs_to_rounding(size: tuple[int, int], result: tuple[int, int], align_corners: bool) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)))
    expected = F.interpolate(x, result, mode="bilinear", align_corners=align_corners)
    resized = matte.resize_bilinear(x, result, align_corners, None)
    torch.testing.assert_close(resized, expected, rtol=0, atol=5e-6)


@settings(deadline=None)
@given(sizes, st.sampled_from([0.5, 1.5, 2.0, 2.3]))
def test_scales(size: tuple[int, int], scale: float) -> None:
    if min(size) * scale < 1:
        return
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(sum(size)))
    expected = F.interpolate(x, scale_factor=scale, mode="bilinear")
    resized = matte.resize_bilinear(x, None, False, [scale, scale])
    torch.testing.assert_close(resized, expected, rtol=0, atol=5e-6)
    with FakeTensorMode() as mode:
        fake = matte.resize_bilinear(mode.from_tensor(x), None, False, [scale, scale])
    assert fake.shape == resized.shape


def test_rounds_rows_first_and_the_far_product_not_at_all() -> None:
    x = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    (a, b), (c, d) = x[0, 0].numpy()
    near, far = np.float32(0.75), np.float32(0.25)

    def blend(low: np.float32, high: np.float32) -> np.float32:
        return np.float32(np.float64(far) * np.float64(high) + np.float64(near * low))

    resized = matte.resize_bilinear(x, None, False, [2.0, 2.0])
    assert float(resized[0, 0, 1, 1]) == blend(blend(a, c), blend(b, d))


def test_a_size_or_scales() -> None:
    with pytest.raises(ValueError, match="neither a size nor scales"):
        matte.resize_bilinear(torch.rand(1, 1, 2, 2), None, False, None)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.booleans())
def test_phases_are_the_taps(size: int, result: int, align_corners: bool) -> None:
    axis = taps(size, result, None, align_corners)
    found = phases(axis, size)
    if found is None:
        assert align_corners or result not in (4 * size, 8 * size, 16 * size, 32 * size)
        return
    x = np.random.default_rng(size).random(size)
    place = np.arange(result) + found.shift
    low, high = (x[(place // found.factor - step).clip(0, size - 1)] for step in (1, 0))
    near, far = found.weights[:, place]
    np.testing.assert_array_equal(near * low + far * high, axis.near * x[axis.low] + axis.far * x[axis.high])
