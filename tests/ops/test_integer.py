import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.ops import exact, integer
from tests.ops.cases import Convolution, convolutions

matte = torch.ops.matte
# Scales that are powers of two make x / scale exact, so that ties are real ties.
scales = st.sampled_from([0.125, 0.25, 1.0, 0.1, 0.0173, 3.7])


@settings(deadline=None)
@given(st.integers(0, 999), scales, st.integers(0, 15), st.sampled_from([2, 4, 8]))
def test_quantize_equals_its_equation(seed: int, scale: float, zero_point: int, bits: int) -> None:
    x = torch.randint(-40, 41, (1, 3, 4, 5), generator=torch.Generator().manual_seed(seed)) / 16
    expected = (torch.round(x / torch.tensor(scale)) + zero_point).clamp(0, 2**bits - 1)
    q = matte.quantize(x, scale, zero_point, bits)
    assert q.dtype == torch.uint8
    assert torch.equal(q.float(), expected)


def test_quantize_rounds_halves_to_even() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    assert matte.quantize(x, 1.0, 10, 8).tolist() == [8, 10, 10, 12, 12, 14]


def test_quantize_divides_in_float32() -> None:
    """Multiplying by the reciprocal would give other codes here."""
    scale = torch.tensor(0.013)
    x = (torch.arange(200).repeat(50) + 0.5) * scale * (1 + torch.linspace(-2e-7, 2e-7, 10_000))
    expected = (x / scale).round()
    assert not torch.equal(expected, (x * (1 / scale)).round())
    assert torch.equal(matte.quantize(x, scale.item(), 0, 8).float(), expected)


def test_quantize_saturates() -> None:
    x = torch.tensor([-1e30, 1e30, float("inf"), float("-inf")])
    assert matte.quantize(x, 0.01, 3, 4).tolist() == [0, 15, 15, 0]


@given(scales, st.integers(0, 255))
def test_dequantize_undoes_quantize_on_the_grid(scale: float, zero_point: int) -> None:
    q = torch.arange(256, dtype=torch.uint8)
    x = matte.dequantize(q, scale, zero_point)
    assert x.dtype == torch.float32
    assert torch.equal(matte.quantize(x, scale, zero_point, 8), q)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 999))
def test_int4_round_trip(rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (rows, columns, 1, 1), generator=torch.Generator().manual_seed(seed)).to(
        torch.int8
    )
    packed = integer.pack_int4(codes)
    assert packed.shape == (rows, -(-columns // 2))
    assert torch.equal(integer.unpack_int4(packed, codes.shape), codes)


def test_int4_low_nibble_first() -> None:
    packed = integer.pack_int4(torch.tensor([[1, -1, 7]], dtype=torch.int8))
    assert packed.tolist() == [[0xF1, 0x07]]


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from([2, 4, 8]), st.integers(0, 255))
def test_convolution_equals_integer_arithmetic(case: Convolution, weight_bits: int, zero_point: int) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    image = (case.batch, case.groups * case.channels, case.height, case.width)
    q = torch.randint(0, 256, image, generator=generator).to(torch.uint8)
    limit = 2 ** (weight_bits - 1)
    shape = (case.groups * case.outputs, case.channels, *case.kernel)
    codes = torch.randint(-limit, limit, shape, generator=generator).to(torch.int8)
    weight = integer.pack_int4(codes) if weight_bits <= 4 else codes
    result = matte.quantized_conv2d(
        q, weight, zero_point, weight_bits, case.kernel, case.stride, case.padding, case.dilation, case.groups
    )
    expected = F.conv2d(
        q.long() - zero_point, codes.long(), None, case.stride, case.padding, case.dilation, case.groups
    )
    assert result.dtype == torch.int32
    assert torch.equal(result.long(), expected)


def test_sums_above_float32_stay_exact() -> None:
    q = torch.full((1, 2048, 3, 3), 255, dtype=torch.uint8)
    weight = torch.full((1, 2048, 3, 3), 127, dtype=torch.int8)
    weight[0, 0, 0, 0] = 126
    result = matte.quantized_conv2d(q, weight, 0, 8, [3, 3], [1, 1], [0, 0], [1, 1], 1)
    assert result.item() == 255 * (127 * 2048 * 9 - 1)
    assert result.item() > exact.FLOAT32_EXACT


def test_schemas_and_shape_functions_agree_with_references() -> None:
    x = torch.randn(2, 6, 5, 6)
    q = matte.quantize(x, 0.1, 4, 8)
    weight = torch.randint(-8, 8, (4, 3, 3, 3)).to(torch.int8)
    tail = ([3, 3], [2, 1], [1, 1], [1, 1], 2)
    calls = [
        (matte.quantize.default, (x, 0.1, 4, 8)),
        (matte.dequantize.default, (q, 0.1, 4)),
        (matte.quantized_conv2d.default, (q, weight, 4, 8, *tail)),
        (matte.quantized_conv2d.default, (q, integer.pack_int4(weight), 4, 4, *tail)),
    ]
    for op, arguments in calls:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
