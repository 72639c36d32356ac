import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.modules import build_module
from mattecompress.modules.quantizer import SMALLEST_SCALE, FakeQuantize, QuantizerConfig
from mattecompress.options import OptionError, format_options

matte = torch.ops.matte
seeds = st.integers(0, 2**16)
scales = st.floats(2**-20, 2**10, width=32)
bits = st.integers(2, 8)


def quantizer(config: QuantizerConfig, scale: float = 1.0, zero_point: int = 0) -> FakeQuantize:
    module = FakeQuantize(config)
    module.set_affine(torch.full_like(module.scale, scale), torch.full_like(module.zero_point, zero_point))
    return module


def values(seed: int, scale: float, shape: tuple[int, ...] = (3, 4, 5)) -> Tensor:
    """Values on both sides of the codes' range, a third of them on ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 100 * scale
    ties = (torch.randint(-300, 300, shape, generator=generator) + 0.5) * scale
    return torch.where(torch.rand(shape, generator=generator) < 0.3, ties, x)


@given(seeds, scales, bits, st.data())
def test_unsigned_codes_are_those_of_the_lowered_operation(
    seed: int, scale: float, bits: int, data: st.DataObject
) -> None:
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    module, x = quantizer(QuantizerConfig(bits), scale, zero_point), values(seed, scale)
    lowered = matte.quantize(x, module.scale.item(), zero_point, bits)
    assert module.codes(x).dtype is torch.uint8
    assert torch.equal(module.codes(x), lowered)
    assert torch.equal(module(x), matte.dequantize(lowered, module.scale.item(), zero_point))


@given(seeds, scales, bits)
def test_signed_codes_are_unsigned_ones_shifted(seed: int, scale: float, bits: int) -> None:
    module, x = quantizer(QuantizerConfig(bits, symmetric=True), scale), values(seed, scale)
    middle = 2 ** (bits - 1)
    lowered = matte.quantize(x, module.scale.item(), middle, bits)
    assert module.codes(x).dtype is torch.int8
    assert torch.equal(module.codes(x).int() + middle, lowered.int())
    assert torch.equal(module(x), matte.dequantize(lowered, module.scale.item(), middle))


@given(seeds, scales, bits, st.booleans())
def test_is_idempotent_and_stays_on_the_grid(seed: int, scale: float, bits: int, symmetric: bool) -> None:
    config = QuantizerConfig(bits, symmetric)
    module, x = quantizer(config, scale, 0 if symmetric else 2), values(seed, scale)
    once = module(x)
    assert torch.equal(module(once), once)
    assert len(once.unique()) <= 2**bits
    codes = module.codes(x)
    assert config.low <= int(codes.min()) and int(codes.max()) <= config.high
    assert torch.equal(once, (codes.float() - module.zero_point) * module.scale)


@given(seeds, bits, st.booleans())
def test_error_is_at_most_half_a_step_inside_the_range(seed: int, bits: int, symmetric: bool) -> None:
    x, config = values(seed, 0.01), QuantizerConfig(bits, symmetric)
    module = FakeQuantize(config)
    module.set_affine(*config.affine(x.min(), x.max()))
    # The zero point is rounded, which moves an unsigned range by up to half a step.
    steps = 0.5 if symmetric else 1.0
    assert float((module(x) - x).detach().abs().max()) <= steps * module.scale.item() * (1 + 1e-5)
    assert module(torch.zeros(1)).item() == 0


@given(seeds, bits)
def test_channels_are_quantized_alone(seed: int, bits: int) -> None:
    x = values(seed, 0.1, (3, 2, 2, 2))
    config = QuantizerConfig(bits, symmetric=True, channels=3)
    module = FakeQuantize(config)
    rows = x.flatten(1)
    module.set_affine(*config.affine(rows.amin(1), rows.amax(1)))
    for channel, scale in enumerate(module.scale.tolist()):
        alone = quantizer(QuantizerConfig(bits, symmetric=True), scale)
        assert torch.equal(module(x)[channel], alone(x[channel]))
        assert torch.equal(module.codes(x)[channel], alone.codes(x[channel]))


def test_affine_spans_the_range() -> None:
    unsigned, signed = QuantizerConfig(4), QuantizerConfig(4, symmetric=True)
    scale, zero_point = unsigned.affine(torch.tensor([-1.0, 0.5, -4.0]), torch.tensor([2.0, 3.0, -1.0]))
    torch.testing.assert_close(scale, torch.tensor([0.2, 0.2, 4 / 15]), rtol=1e-6, atol=0)
    assert zero_point.tolist() == [5, 0, 15]
    scale, zero_point = signed.affine(torch.tensor([-8.0, -1.0]), torch.tensor([1.0, 7.0]))
    assert scale.tolist() == [1.0, 1.0] and zero_point.tolist() == [0, 0]
    assert unsigned.affine(torch.zeros(1), torch.zeros(1))[0].item() == pytest.approx(SMALLEST_SCALE)


def test_gradients_are_straight_through_and_lsq() -> None:
    """dx passes inside the codes' range only; ds is round(v) - v inside and the outermost code outside."""
    module = quantizer(QuantizerConfig(3, symmetric=True), 0.5)
    x = torch.tensor([-9.0, -2.0, -0.6, 0.3, 1.4, 1.6, 9.0], requires_grad=True)
    gradient = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    module(x).backward(gradient)
    assert x.grad is not None and module.scale.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    by_scale = torch.tensor([-4, 0, -1 + 1.2, 1 - 0.6, 3 - 2.8, 3 - 3.2, 3])
    expected = (gradient * by_scale).sum() / (7 * 3) ** 0.5
    torch.testing.assert_close(module.scale.grad, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_scales_is_per_channel() -> None:
    config = QuantizerConfig(4, symmetric=True, channels=2)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    together = quantizer(config, 0.3)
    together(x).square().sum().backward()
    assert together.scale.grad is not None
    for channel in range(2):
        alone = quantizer(QuantizerConfig(4, symmetric=True), 0.3)
        alone(x[channel]).square().sum().backward()
        torch.testing.assert_close(together.scale.grad[channel], alone.scale.grad)


@given(seeds, bits, st.data())
def test_partly_quantized_is_a_mixture(seed: int, bits: int, data: st.DataObject) -> None:
    """Values and gradients are those of the elements that are chosen, and of x where none is."""
    module = quantizer(QuantizerConfig(bits), 0.1, data.draw(st.integers(0, 2**bits - 1)))
    x = values(seed, 0.1).requires_grad_()
    chosen = (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    mixed, plain = module.partly(x, chosen), torch.where(chosen == 1, module(x), x)
    assert torch.equal(mixed, plain)
    found = torch.autograd.grad(mixed, (x, module.scale), gradient)
    expected = torch.autograd.grad(plain, (x, module.scale), gradient)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


def test_scale_cannot_reach_zero() -> None:
    x = torch.tensor([0.4, 1.6])
    assert torch.equal(quantizer(QuantizerConfig(4), -0.5)(x), quantizer(QuantizerConfig(4), 0.5)(x))
    assert quantizer(QuantizerConfig(4), 0.0)(x).isfinite().all()


def test_text_round_trip() -> None:
    config = QuantizerConfig(4, symmetric=True, channels=16)
    text = format_options("FakeQuantize", config)
    assert text == "FakeQuantize{bits=4 symmetric=true channels=16}"
    built = build_module(text)
    assert isinstance(built, FakeQuantize) and built.config == config
    assert built.scale.shape == built.zero_point.shape == (16,)
    assert isinstance(build_module("FakeQuantize"), FakeQuantize)


@pytest.mark.parametrize("text", ["bits=1", "bits=9", "channels=0", "bits=four"])
def test_refuses_impossible_options(text: str) -> None:
    with pytest.raises(OptionError):
        build_module(f"FakeQuantize{{{text}}}")


def test_copies_share_nothing() -> None:
    module = quantizer(QuantizerConfig(8), 0.5, 3)
    twin = copy.deepcopy(module)
    twin.set_affine(torch.tensor(1.0), torch.tensor(0))
    assert module.scale.item() == 0.5 and module.zero_point.item() == 3
