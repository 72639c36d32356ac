import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.quantization.calibration import fit_weights
from mattecompress.reconstruction.rounding import LearnedRounding, beta_at

configs = st.builds(QuantizerConfig, st.integers(2, 8), st.booleans(), st.sampled_from([None, 3]))


def fitted(config: QuantizerConfig, seed: int) -> tuple[FakeQuantize, Tensor]:
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    quantizer = FakeQuantize(config)
    fit_weights(quantizer, weight, "min-max")
    return quantizer, weight


@settings(deadline=None, max_examples=40)
@given(configs, st.integers(0, 1000))
def test_begins_at_the_weight_and_rounds_to_nearest(config: QuantizerConfig, seed: int) -> None:
    """Inside the range of codes; a zero point that was rounded cuts off up to half a step."""
    quantizer, weight = fitted(config, seed)
    rounding = LearnedRounding(quantizer, weight)
    scale = quantizer.affine(4)[0]
    assert ((rounding(weight) - weight).abs() <= 0.5001 * scale).all()
    assert torch.equal(rounding.rounded(), quantizer(weight))
    assert torch.equal(quantizer(rounding.rounded()), rounding.rounded())


def test_goes_up_or_down_as_learned() -> None:
    quantizer, weight = fitted(QuantizerConfig(4, True, 3), 0)
    rounding = LearnedRounding(quantizer, weight)
    scale = quantizer.affine(4)[0]
    for value, codes in ((5.0, (weight / scale).floor() + 1), (-5.0, (weight / scale).floor())):
        torch.nn.init.constant_(rounding.logits, value)
        expected = codes.clamp(-8, 7) * scale
        assert torch.equal(rounding.rounded(), expected)
        assert torch.equal(rounding(weight), expected), "h is 0 or 1 that far out"
        assert not rounding.regularizer_gradient(2.0).any()


@settings(deadline=None, max_examples=40)
@given(configs, st.integers(0, 1000))
def test_gradients_are_those_of_the_formulas(config: QuantizerConfig, seed: int) -> None:
    quantizer, weight = fitted(config, seed)
    rounding = LearnedRounding(quantizer, weight)
    generator = torch.Generator().manual_seed(seed)
    upstream, beta = torch.randn(weight.shape, generator=generator), 2 + seed / 60
    logits = (rounding.logits.detach() + 3 * torch.randn(weight.shape, generator=generator)).requires_grad_()
    rounding.logits.data.copy_(logits.detach())
    scale, zero_point = quantizer.affine(4)
    share = (logits.sigmoid() * 1.2 - 0.1).clamp(0, 1)
    codes = ((weight / scale).floor() + share + zero_point).clamp(config.low, config.high)
    (expected,) = torch.autograd.grad(((codes - zero_point) * scale * upstream).sum(), logits)
    (found,) = torch.autograd.grad((rounding(weight) * upstream).sum(), rounding.logits)
    torch.testing.assert_close(found, expected)
    share = (logits.sigmoid() * 1.2 - 0.1).clamp(0, 1)
    (expected,) = torch.autograd.grad((1 - (2 * share - 1).abs().pow(beta)).sum(), logits)
    torch.testing.assert_close(rounding.regularizer_gradient(beta), expected, atol=1e-5, rtol=1e-4)


def test_regularizer_pushes_towards_the_nearer_side() -> None:
    quantizer, weight = fitted(QuantizerConfig(4, True, 3), 0)
    rounding = LearnedRounding(quantizer, weight)
    torch.nn.init.constant_(rounding.logits, 0.5)
    assert (rounding.regularizer_gradient(2.0) < 0).all()
    torch.nn.init.constant_(rounding.logits, -0.5)
    assert (rounding.regularizer_gradient(2.0) > 0).all()


def test_beta_falls_linearly_behind_the_warm_up() -> None:
    assert beta_at(19, 100, 0.2) is None
    assert [beta_at(step, 100, 0.2) for step in (20, 60, 100)] == pytest.approx([20, 11, 2])
    assert beta_at(0, 100, 0.0) == 20
