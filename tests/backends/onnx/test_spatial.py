import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.onnx.translate import refusal
from mattecompress.ops.reproducible import multiply_add
from tests.backends.onnx.nets import assert_same, compiled, image, program_of
from tests.ops.cases import Convolution, convolutions, pairs

SUM_ORDER = 2e-5


@given(convolutions(channels=5, outputs=4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_convolution(case: Convolution, bias: bool):
    """Sums are taken in another order."""
    torch.manual_seed(case.seed)
    tensors = {"weight": torch.randn(case.outputs * case.groups, case.channels, *case.kernel)}
    if bias:
        tensors["bias"] = torch.randn(case.outputs * case.groups)
    x = torch.randn(case.batch, case.channels * case.groups, case.height, case.width)
    assert_same(
        lambda x, weight, bias=None: F.conv2d(
            x, weight, bias, case.stride, case.padding, case.dilation, case.groups
        ),
        x,
        SUM_ORDER,
        **tensors,
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_with_named_padding(padding):
    weight = torch.randn(3, 4, 2, 3)
    assert_same(
        lambda x, weight: F.conv2d(x, weight, padding=padding, dilation=(1, 2)),
        image(1, 4, 6, 7),
        SUM_ORDER,
        weight=weight,
    )


@given(pairs(2, 3), pairs(1, 4), st.integers(0, 1), st.booleans(), st.booleans(), pairs(5, 9))
@settings(max_examples=20, deadline=None)
def test_pooling(kernel, stride, padding, ceil, counted, size):
    """Whatever is not refused is right; only padding or gaps under ceil_mode are refused."""
    pools = (
        lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted),
        lambda x: F.max_pool2d(x, kernel, stride, padding, 1, ceil),
    )
    for pool in pools:
        program = program_of(pool, (1, 2, *size))
        if any(refusal(program, node) for node in program.operations()):
            assert ceil and (padding or any(s > k for s, k in zip(stride, kernel, strict=True)))
        else:
            assert_same(pool, image(1, 2, *size), atol=1e-6)


def test_pooling_of_open_sizes():
    program = program_of(lambda x: F.avg_pool2d(x, 2, 2, 0, True, False), (1, 2, "4*h", "2*w"))
    artifact = compiled(program)
    for height, width in ((4, 8), (12, 6)):
        x = image(1, 2, height, width)
        torch.testing.assert_close(artifact.run(x=x)["y"], F.avg_pool2d(x, 2, 2, 0, True, False))


RESIZES = {
    "twice": {"scale_factor": 2.0},
    "fraction": {"scale_factor": 0.4},
    "fraction-of-ratio": {"scale_factor": 0.375, "recompute_scale_factor": False},
    "size": {"size": (11, 5)},
    "one": {"size": (1, 1)},
    "same": {"size": (6, 9)},
}


@pytest.mark.parametrize("options", RESIZES.values(), ids=RESIZES)
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "bilinear"},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "bicubic"},
        {"mode": "nearest"},
    ],
)
def test_resize(options, mode):
    assert_same(lambda x: F.interpolate(x, **options, **mode), image(2, 3, 6, 9), atol=1e-5)


REDUCTIONS = {
    "global-pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "dividing-pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean-one": lambda x: x.mean(-1),
    "mean-all": lambda x: x.mean(),
    "sum": lambda x: x.sum(1),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin(1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "layer-norm": lambda x: F.layer_norm(x, (8,)),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "bmm": lambda x: torch.bmm(x[0], x[0].transpose(1, 2)),
    "mm": lambda x: torch.mm(x[0, 0], x[0, 0].t()),
    "einsum": lambda x: torch.einsum("nchw,nchv->nwv", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x),
    "attention-mask": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=x @ x.transpose(-1, -2) > -1e9
    ),
    "attention-bias": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=x @ x.transpose(-1, -2), scale=0.3
    ),
}


@pytest.mark.parametrize("function", REDUCTIONS.values(), ids=REDUCTIONS)
def test_reductions(function):
    assert_same(function, image(2, 4, 6, 8), atol=SUM_ORDER)


def test_dense_layers():
    weight, bias = torch.randn(5, 8), torch.randn(5)
    assert_same(
        lambda x, weight, bias: F.linear(x, weight, bias),
        image(2, 4, 6, 8),
        SUM_ORDER,
        weight=weight,
        bias=bias,
    )
    assert_same(
        lambda x, weight, bias: torch.addmm(bias, x, weight.t(), beta=0.5, alpha=2.0),
        image(6, 8),
        SUM_ORDER,
        weight=weight,
        bias=bias,
    )
    scale, shift = torch.rand(8), torch.rand(8)
    assert_same(
        lambda x, scale, shift: F.layer_norm(x, (8,), scale, shift, 1e-3),
        image(2, 4, 8),
        SUM_ORDER,
        scale=scale,
        shift=shift,
    )


def test_transposed_convolution():
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(6)
    assert_same(
        lambda x, weight, bias: F.conv_transpose2d(x, weight, bias, (2, 1), (1, 0), (1, 0), 2),
        image(1, 4, 5, 6),
        SUM_ORDER,
        weight=weight,
        bias=bias,
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), "windows differ in size"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "causal"),
    ],
)
def test_refusals_name_a_reason(function, reason):
    program = program_of(function, (1, 2, 6, 8))
    (found,) = [text for node in program.operations() if (text := refusal(program, node))]
    assert reason in found


@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 2, False), (1, 1, True), (1, 2, True)])
def test_sums_run_in_order_where_a_bit_decides(kernel: int, stride: int, bias: bool):
    """Rows and columns of the kernel, then channels, each product added by a fused multiply-add; then the bias."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 5, kernel, kernel, generator=generator)
    x, shift = torch.randn(1, 5, 18, 22, generator=generator), torch.randn(16, generator=generator)
    tensors = {"weight": weight} | ({"bias": shift} if bias else {})

    def stated(x, weight, bias=None):
        return torch.ops.matte.sigmoid(F.conv2d(x, weight, bias, stride, kernel // 2))

    (found,) = compiled(program_of(stated, tuple(x.shape), **tensors)).run(x=x).values()
    padded = F.pad(x, [kernel // 2] * 4)
    total = torch.zeros_like(found)
    for row, column, channel in itertools.product(range(kernel), range(kernel), range(5)):
        ends = (row + (found.shape[2] - 1) * stride + 1, column + (found.shape[3] - 1) * stride + 1)
        seen = padded[:, channel : channel + 1, row : ends[0] : stride, column : ends[1] : stride]
        total = multiply_add(seen, weight[:, channel, row, column].reshape(1, -1, 1, 1), total)
    total = total + shift[:, None, None] if bias else total
    assert torch.equal(found, torch.ops.matte.sigmoid(total))
