import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from mattecompress.modules import build_module
from mattecompress.modules.binary import (
    BinaryConv2d,
    BinaryConvConfig,
    Method,
    clip_slope,
    identity_slope,
    polynomial_slope,
    rectified_clamp,
    recu_tau,
    sign,
)
from mattecompress.options import format_options
from tests.ops.cases import Convolution, convolutions

METHODS: tuple[Method, ...] = ("bnn", "dorefa", "recu", "react", "bimatting")
GRID = torch.tensor([-3.0, -1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])


def layer(method: Method, **changes: object) -> BinaryConv2d:
    """A 3x3 layer with nothing left at its initial value."""
    config = BinaryConvConfig(6, 4, (3, 3), padding=(1, 1), bias=True, method=method)
    module = BinaryConv2d(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return module.eval()


def image() -> Tensor:
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(2))
    x[0, :, 0, 0] = 0
    return x


def scaled_gradient(module: BinaryConv2d, x: Tensor, upstream: Tensor) -> Tensor:
    """The gradient at scale * B_w, for an upstream gradient at the output."""
    weight = (module.binary_weight() * module.output_scale().reshape(-1, 1, 1, 1)).detach().requires_grad_()
    y = F.conv2d(module.binary_input(x).detach(), weight, padding=1)
    return torch.autograd.grad(y, weight, upstream)[0]


@pytest.mark.parametrize("method", METHODS)
class TestLaws:
    def test_values(self, method: Method) -> None:
        module = layer(method)
        assert set(module.binary_weight().unique().tolist()) == {-1, 1}
        low = 0 if module.encoding == "units" else -1
        assert set(module.binary_input(image()).unique().tolist()) == {low, 1}

    def test_zero_is_positive(self, method: Method) -> None:
        module = layer(method, inputs=1, outputs=1, kernel=(1, 1))
        with torch.no_grad():
            module.weight.zero_()
            if module.activation_bias is not None:
                module.activation_bias.zero_()
        assert module.binary_weight().item() == 1
        if module.encoding == "signs":
            assert module.binary_input(torch.tensor([[[[0.0, -0.0]]]])).tolist() == [[[[1, 1]]]]

    def test_no_gradient_outside_the_clip_range(self, method: Method) -> None:
        module = layer(method)
        x = torch.where(image() >= 0, image() + 20, image() - 20).requires_grad_()
        module(x).sum().backward()
        assert x.grad is not None and x.grad.count_nonzero() == 0

    def test_equals_the_equation(self, method: Method) -> None:
        """Padding counts zero after the sign; scale and bias come after the sum."""
        module, x = layer(method), image()
        bits, weight = module.binary_input(x).double(), module.binary_weight().double()
        sums = F.conv2d(F.pad(bits, (1, 1, 1, 1)), weight)
        assert torch.equal(module.integers(x).double(), sums)
        assert module.bias is not None
        expected = sums.float() * module.output_scale() + module.bias[:, None, None]
        assert torch.equal(module(x), expected)

    def test_activation_gradient(self, method: Method) -> None:
        """dL/dx = dL/dB * slope, with dL/dB from a plain convolution."""
        module, x = layer(method), image().requires_grad_()
        y = module(x)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
        (gradient,) = torch.autograd.grad(y, x, upstream)
        bits = module.binary_input(x).detach().requires_grad_()
        plain = F.conv2d(bits, module.binary_weight() * module.output_scale()[..., None], padding=1)
        (at_bits,) = torch.autograd.grad(plain, bits, upstream)
        bias = 0 if module.activation_bias is None else module.activation_bias[:, None, None]
        shifted = (x + bias).detach()
        slopes = {
            "bnn": (shifted.abs() <= 1).float(),
            "dorefa": ((shifted >= 0) & (shifted <= 1)).float(),
            "recu": (2 - 2 * shifted.abs()).clamp_min(0),
            "react": (2 - 2 * shifted.abs()).clamp_min(0),
            "bimatting": (shifted.abs() <= 1).float(),
        }
        torch.testing.assert_close(gradient, at_bits * slopes[method], rtol=1e-5, atol=1e-5)

    def test_text_form(self, method: Method) -> None:
        module = layer(method, groups=2, stride=(2, 1), border=1)
        text = format_options("BinaryConv2d", module.config)
        built = build_module(text)
        assert isinstance(built, BinaryConv2d) and built.config == module.config
        assert list(built.state_dict()) == list(module.state_dict())

    def test_fresh_layers_draw_nothing_from_the_global_generator(self, method: Method) -> None:
        before = torch.get_rng_state()
        first, second = BinaryConv2d(layer(method).config), BinaryConv2d(layer(method).config)
        assert torch.equal(torch.get_rng_state(), before)
        for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            assert torch.equal(one, other)

    def test_settling_clamps_bnn_and_moves_the_quantile_of_recu(self, method: Method) -> None:
        module = layer(method)
        before = module.weight.detach().clone()
        module.settle(0.5)
        expected = before.clamp(-1, 1) if method == "bnn" else before
        assert torch.equal(module.weight, expected) and not torch.equal(before, before.clamp(-1, 1))
        assert (module.tau == recu_tau(0.5)) if method == "recu" else (module.tau is None)

    def test_one_image_without_batch(self, method: Method) -> None:
        module, x = layer(method), image()
        assert torch.equal(module(x[0]), module(x)[0])


@pytest.mark.parametrize("method", ["bnn", "dorefa", "react"])
def test_weight_gradient(method: Method) -> None:
    """dL/dw = dL/d(scale * B_w) * slope: the scale itself carries no gradient."""
    module, x = layer(method), image()
    y = module(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad(y, module.weight, upstream)
    slope = (module.weight.abs() <= 1).float() if method == "react" else 1
    expected = scaled_gradient(module, x, upstream) * slope
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_recu_weight_gradient() -> None:
    """Through the clamp and the standardisation, as if sign were the identity."""
    module, x = layer("recu"), image()
    y = module(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    gradient, to_scale = torch.autograd.grad(y, [module.weight, module.scale], upstream)
    signs = module.binary_weight().detach().requires_grad_()
    scale = module.output_scale().detach()
    (at_signs,) = torch.autograd.grad(
        F.conv2d(module.binary_input(x).detach(), signs, padding=1) * scale, signs, upstream
    )
    assert module.tau is not None
    (expected,) = torch.autograd.grad(rectified_clamp(module.weight, module.tau), module.weight, at_signs)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    sums = (module.integers(x) * upstream).sum((0, 2, 3))
    torch.testing.assert_close(to_scale.flatten(), sums, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (identity_slope, [1.0] * 10),
        (clip_slope, [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
        (polynomial_slope, [0, 0, 1, 2, 2, 1.5, 1, 0.5, 0, 0]),
    ],
)
def test_slopes_of_sign(slope, expected: list[float]) -> None:
    x = GRID.clone().requires_grad_()
    y = sign(x, slope)
    y.sum().backward()
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1, 1]
    assert x.grad is not None and x.grad.tolist() == expected


def test_polynomial_is_the_derivative_of_reactnets_approximation() -> None:
    x = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64).requires_grad_()
    middle = torch.where(x < 0, 2 * x + x * x, 2 * x - x * x)
    approximation = torch.where(x.abs() < 1, middle, x.detach().sign())
    (expected,) = torch.autograd.grad(approximation.sum(), x)
    torch.testing.assert_close(polynomial_slope(x.detach()), expected, rtol=0, atol=1e-12)


def test_units_round_halves_to_even() -> None:
    module = layer("dorefa", inputs=1, outputs=1, kernel=(1, 1))
    x = GRID.reshape(1, 1, 1, -1)
    assert torch.equal(module.binary_input(x), x.clamp(0, 1).round())


def test_two_bits_round_thirds() -> None:
    module = layer("dorefa", inputs=1, outputs=1, kernel=(1, 1), activations=2)
    x = torch.cat([GRID, torch.linspace(-0.2, 1.2, 57)]).reshape(1, 1, 1, -1)
    assert torch.equal(module.binary_input(x), (3 * x.clamp(0, 1)).round())


def test_two_bits_are_a_scale_and_thirds() -> None:
    """y = mean|w| * sign(w) (*) codes / 3, and slopes as of one bit: of activations, and of mean|w| * sign(w)."""
    one, two = layer("dorefa"), layer("dorefa", activations=2)
    x = image().requires_grad_()
    thirds = ((3 * x.detach().clamp(0, 1)).round() / 3).requires_grad_()
    weight = (two.binary_weight() * one.output_scale()).detach().requires_grad_()
    expected = F.conv2d(thirds, weight, two.bias, padding=1)
    y = two(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    to_x, to_weight = torch.autograd.grad(y, [x, two.weight], upstream)
    at_thirds, at_weight = torch.autograd.grad(expected, [thirds, weight], upstream)
    inside = (x >= 0) & (x <= 1)
    torch.testing.assert_close(to_x, at_thirds * inside, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_weight, at_weight, rtol=1e-5, atol=1e-5)


def test_two_bits_with_a_border_of_ones() -> None:
    module = layer("dorefa", border=1, activations=2)
    padded = F.pad(module.binary_input(image()), (1, 1, 1, 1), value=3.0)
    assert torch.equal(module.integers(image()), F.conv2d(padded, module.binary_weight()))


@pytest.mark.parametrize("method", ["bnn", "recu", "react"])
def test_two_bits_need_dorefa(method: Method) -> None:
    with pytest.raises(ValueError, match=f"{method} has no 2-bit activations"):
        BinaryConvConfig(1, 1, (1, 1), method=method, activations=2)


def test_scales() -> None:
    w = layer("bnn").weight.detach()
    assert layer("bnn").output_scale() == 1
    assert layer("dorefa").output_scale() == w.abs().mean()
    torch.testing.assert_close(layer("react").output_scale().flatten(), w.abs().mean((1, 2, 3)))


def test_recu_standardises_and_clamps() -> None:
    weight = layer("recu").weight.detach() + 0.3
    standard = rectified_clamp(weight, torch.tensor(1 - 1e-7))
    spread = standard.std((1, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.full((4,), 2 * math.sqrt(2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(standard.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    limit = -standard.abs().mean() * math.log(2 - 2 * 0.9)
    torch.testing.assert_close(
        rectified_clamp(weight, torch.tensor(0.9)), standard.clamp(-limit, limit), rtol=1e-4, atol=1e-4
    )


def test_recu_schedule() -> None:
    assert recu_tau(0) == pytest.approx(0.85) and recu_tau(1) == pytest.approx(0.99)
    assert recu_tau(0.5) == pytest.approx(0.85 + 0.14 * (math.exp(0.5) - 1) / (math.e - 1))


def test_recu_divides_by_the_samples_deviation_in_training_only() -> None:
    module, x = layer("recu"), 10 * image()
    gradients = []
    for training in (False, True):
        given = x.clone().requires_grad_()
        module.train(training)(given).sum().backward()
        assert given.grad is not None
        gradients.append(given.grad.count_nonzero())
    assert gradients[0] < gradients[1]
    assert torch.equal(module.eval()(x), module.train()(x))


def test_recu_from_float_fits_its_scale_best() -> None:
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.2
    module = BinaryConv2d.from_float(layer("recu").config, weight, torch.ones(4))
    assert torch.equal(module.weight, weight)
    assert module.bias is not None and torch.equal(module.bias, torch.ones(4))
    assert module.scale is not None

    def error(scale: Tensor) -> Tensor:
        return (weight - scale[..., None] * module.binary_weight()).square().sum((1, 2, 3))

    best = error(module.scale)
    assert (best < error(module.scale + 0.01)).all() and (best < error(module.scale - 0.01)).all()


@pytest.mark.parametrize("method", ["dorefa", "react"])
def test_a_filter_of_zeros_still_learns(method: Method) -> None:
    module = layer(method)
    with torch.no_grad():
        module.weight.zero_()
    y = module(image())
    assert torch.isfinite(y).all()
    upstream = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, module.weight, upstream)
    torch.testing.assert_close(gradient, scaled_gradient(module, image(), upstream), rtol=1e-4, atol=1e-4)


def test_react_threshold() -> None:
    module, x = layer("react"), image()
    threshold = module.threshold()
    assert threshold is not None
    assert torch.equal(module.binary_input(x) > 0, x >= threshold[:, None, None])


def test_a_border_of_ones() -> None:
    module = layer("bnn", border=1, padding=(2, 1))
    x = image()
    padded = F.pad(module.binary_input(x), (1, 1, 2, 2), value=1.0)
    assert torch.equal(module.integers(x), F.conv2d(padded, module.binary_weight()))


@settings(max_examples=25, deadline=None)
@given(convolutions(channels=12, outputs=6))
def test_geometry(case: Convolution) -> None:
    config = BinaryConvConfig(
        case.groups * case.channels,
        case.groups * case.outputs,
        case.kernel,
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    module = BinaryConv2d(config).eval()
    shape = (case.batch, config.inputs, case.height, case.width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(case.seed))
    bits, weight = torch.where(x >= 0, 1.0, -1.0), torch.where(module.weight >= 0, 1.0, -1.0)
    assert torch.equal(
        module(x), F.conv2d(bits, weight, None, case.stride, case.padding, case.dilation, case.groups)
    )
