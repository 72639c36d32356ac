import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.modules import build_module
from mattecompress.modules.spatial_mask import Rule, SpatialMask, SpatialMaskConfig
from mattecompress.options import format_options

RULES: tuple[Rule, ...] = ("residual", "xor", "support_residual")


def disc() -> Tensor:
    """An alpha with a soft edge, 16x24."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    return (6 - ((y - 8) ** 2 + (x - 12) ** 2).sqrt()).clamp(-1, 1).add(1).div(2)[None, None]


def round_trip(x: Tensor) -> Tensor:
    size = x.shape[-2:]
    small = F.interpolate(x, (size[0] // 2, size[1] // 2), mode="bilinear", align_corners=False)
    return F.interpolate(small, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("rule", RULES)
class TestLaws:
    @pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 2), (7, 9)])
    def test_any_size(self, rule: Rule, size: tuple[int, int]) -> None:
        mask = SpatialMask(SpatialMaskConfig(rule))(torch.randn(3, 1, *size))
        assert mask.shape == (3, 1, *size) and set(mask.unique().tolist()) <= {0, 1}

    @pytest.mark.parametrize("value", [-1.0, 0.0, 0.7, 2.0])
    def test_a_constant_alpha_needs_no_closer_look(self, rule: Rule, value: float) -> None:
        mask = SpatialMask(SpatialMaskConfig(rule))(torch.full((2, 1, 6, 8), value))
        assert mask.sum() == 0

    def test_marks_the_boundary_only(self, rule: Rule) -> None:
        threshold = 0.3 if rule == "xor" else 0.01
        mask = SpatialMask(SpatialMaskConfig(rule, threshold))(disc())
        assert mask[0, 0, 8, 12] == mask[0, 0, 0, 0] == 0
        assert 0 < mask.mean() < 0.5

    def test_gives_no_gradient(self, rule: Rule) -> None:
        alpha = disc().requires_grad_()
        assert not SpatialMask(SpatialMaskConfig(rule))(alpha).requires_grad

    def test_samples_are_independent(self, rule: Rule) -> None:
        layer, alpha = SpatialMask(SpatialMaskConfig(rule, 0.1)), torch.randn(3, 1, 7, 9)
        for sample in range(3):
            assert torch.equal(layer(alpha)[sample], layer(alpha[sample : sample + 1])[0])

    def test_text_form(self, rule: Rule) -> None:
        config = SpatialMaskConfig(rule, 0.25)
        built = build_module(format_options("SpatialMask", config))
        assert isinstance(built, SpatialMask) and built.config == config


def test_equations() -> None:
    x, t = torch.randn(2, 1, 8, 10, generator=torch.Generator().manual_seed(0)), 0.4
    support = (x.clamp(0, 1) > 0).float()
    expected = {
        "residual": (x - round_trip(x)).abs() >= t,
        "xor": (x > t) != (round_trip(x) > t),
        "support_residual": (support - round_trip(support)).abs() >= t,
    }
    for rule in RULES:
        assert torch.equal(SpatialMask(SpatialMaskConfig(rule, t))(x).bool(), expected[rule])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["residual", "support_residual"]), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_marks_no_more(rule: Rule, one: float, other: float) -> None:
    low, high = sorted((one, other))
    wide, narrow = (SpatialMask(SpatialMaskConfig(rule, threshold))(disc()) for threshold in (low, high))
    assert (narrow <= wide).all()
