import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.onnx import Onnx
from tests.backends.onnx.nets import assert_same, both, compiled, image, operators, program_of

UNARY = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky-relu": lambda x: F.leaky_relu(x, 0.2),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "log": lambda x: torch.log(x.abs() + 1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "square": lambda x: x**2,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "clamp-low": lambda x: x.clamp(min=0.1),
    "clamp-high": lambda x: x.clamp(max=0.1),
    "clamp-min": lambda x: torch.clamp_min(x, 0.1),
    "clamp-max": lambda x: torch.clamp_max(x, 0.1),
    "difference-from": lambda x: 1 - x,
    "scaled-sum": lambda x: torch.add(x, x * x, alpha=3),
    "scaled-difference": lambda x: torch.rsub(x, 2.0, alpha=3),
    "quotient": lambda x: x / 3,
    "quotient-floor": lambda x: torch.div(x, 0.7, rounding_mode="floor"),
    "quotient-trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
    "where": lambda x: torch.where(x > 0, x, x * 0.5),
    "masked-fill": lambda x: x.masked_fill(x < 0, -9.0),
    "maximum": lambda x: torch.maximum(x, x * x),
    "minimum": lambda x: torch.minimum(x, x * x),
}
COMPARISONS = {
    "eq": lambda x: x == 0.5,
    "ne": lambda x: x != 0.5,
    "lt": lambda x: x < 0.5,
    "le": lambda x: x <= 0.5,
    "gt": lambda x: x > x.abs(),
    "ge": lambda x: x >= x.abs(),
    "and": lambda x: torch.logical_and(x > 0, x < 1),
    "or": lambda x: torch.logical_or(x < 0, x > 1),
    "not": lambda x: torch.logical_not(x > 0),
    "tilde": lambda x: ~(x > 0),
}


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
def test_unary(function):
    """Library functions may differ in the last places."""
    assert_same(function, image(1, 3, 5, 7), atol=2e-6)


@pytest.mark.parametrize("function", COMPARISONS.values(), ids=COMPARISONS)
def test_comparisons_are_exact(function):
    assert_same(function, image(1, 3, 5, 7), atol=0)


def test_prelu_has_a_slope_per_channel():
    slope = torch.tensor([0.1, -0.5, 2.0])
    assert_same(lambda x, slope: F.prelu(x, slope), image(2, 3, 5, 7), atol=0, slope=slope)


def test_integers_times_float_are_promoted():
    scale = torch.rand(1, 3, 1, 1)
    assert_same(lambda x, scale: x.round().to(torch.int32) * scale, image(1, 3, 5, 7), atol=0, scale=scale)


def test_integers_divide_truly():
    assert_same(lambda x: x.round().to(torch.int32) / 3, image(1, 3, 5, 7), atol=1e-7)


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=0, max_size=4), st.sampled_from(["add", "sub", "mul"]))
@settings(max_examples=20, deadline=None)
def test_operands_broadcast(shape, kind):
    shape = [min(size, axis) for size, axis in zip(shape, (2, 3, 1, 3), strict=False)]
    shape = [size if size == axis else 1 for size, axis in zip(shape[::-1], (3, 1, 3, 2), strict=False)][::-1]
    other = torch.rand(shape)
    assert_same(lambda x, other: getattr(torch, kind)(x, other), image(2, 3, 1, 3), atol=0, other=other)


def beside_a_rounding(function):
    """The function in a program that also rounds to codes."""
    return lambda x: function(x) + torch.ops.matte.quantize(x, 1.0, 0, 8) * 0


@pytest.mark.parametrize("function", [F.hardswish, F.hardsigmoid])
def test_functions_are_exact_where_a_program_rounds(function):
    x = image(1, 3, 50, 50, spread=3.0)
    assert_same(beside_a_rounding(function), x, atol=0)


def test_sigmoid_keeps_its_tails_where_a_program_rounds():
    """A sign that is taken later may hang on them."""
    x = torch.linspace(-80, 20, 2001)
    expected, given_value = both(program_of(beside_a_rounding(torch.sigmoid), tuple(x.shape)), x)
    torch.testing.assert_close(given_value, expected, rtol=1e-6, atol=0)


def test_functions_keep_their_names_in_a_float_program():
    program = program_of(lambda x: torch.sigmoid(F.hardswish(x)) * F.hardsigmoid(x), (1, 3, 4, 4))
    assert operators(compiled(program)) == ["HardSwish", "Sigmoid", "HardSigmoid", "Mul"]
    rounding = program_of(beside_a_rounding(F.hardswish), (1, 3, 4, 4))
    assert "HardSwish" not in operators(compiled(rounding))
    assert "HardSwish" in operators(Onnx(exact=False, verify=False).compile(rounding))


def test_factors_stay_apart_where_a_bit_decides():
    """One factor for two would round once instead of twice."""
    factors = {name: torch.randn(4, 1, 1) for name in ("first", "second")}
    assert_same(
        lambda x, first, second: torch.ops.matte.sigmoid(x * first * second), image(1, 4, 8, 8), 0, **factors
    )
