import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.ops import binary
from tests.ops.cases import Convolution, convolutions

matte = torch.ops.matte
words = st.sampled_from(binary.WORDS)
encodings = st.sampled_from(binary.ENCODINGS)
borders = st.sampled_from([0, 1])


def random_image(case: Convolution, channels: int) -> Tensor:
    """Values that include exact zeros and exact halves, where the rounding rules bite."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, channels, case.height, case.width)
    return torch.randint(-4, 5, shape, generator=generator) / 4


def random_weight(case: Convolution, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(case.seed + 1))


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).double()


def encode(x: Tensor, encoding: str) -> Tensor:
    return signs(x) if encoding == "signs" else x.clamp(0, 1).round().double()


def convolve(case: Convolution, image: Tensor, weight: Tensor, groups: int, border: int) -> Tensor:
    """The definition: pad by hand, convolve in float64."""
    vertical, horizontal = case.padding
    padded = F.pad(image, (horizontal, horizontal, vertical, vertical), value=float(border))
    return F.conv2d(padded, weight, None, case.stride, 0, case.dilation, groups).to(torch.int32)


def pack(x: Tensor, encoding: str, groups: int, word: int) -> Tensor:
    if encoding == "signs":
        return matte.pack_signs(x, None, groups, word)
    return matte.pack_units(x, groups, word)


@settings(max_examples=60, deadline=None)
@given(convolutions(), words, encodings, borders)
def test_convolution_equals_float(case: Convolution, word: int, encoding: str, border: int) -> None:
    x = random_image(case, case.groups * case.channels)
    weight = random_weight(case, (case.groups * case.outputs, case.channels, *case.kernel))
    result = matte.binary_conv2d(
        pack(x, encoding, case.groups, word),
        binary.pack_weight_signs(weight, word),
        case.channels,
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
        encoding,
        border,
    )
    assert result.dtype == torch.int32
    assert torch.equal(result, convolve(case, encode(x, encoding), signs(weight), case.groups, border))


@settings(max_examples=40, deadline=None)
@given(convolutions(), words, encodings, borders)
def test_depthwise_equals_float(case: Convolution, word: int, encoding: str, border: int) -> None:
    x = random_image(case, case.channels)
    weight = random_weight(case, (case.channels, 1, *case.kernel))
    result = matte.binary_depthwise_conv2d(
        pack(x, encoding, 1, word),
        binary.pack_depthwise_signs(weight, word),
        case.channels,
        case.stride,
        case.padding,
        case.dilation,
        encoding,
        border,
    )
    assert torch.equal(result, convolve(case, encode(x, encoding), signs(weight), case.channels, border))


@settings(max_examples=40, deadline=None)
@given(convolutions(), words)
def test_popcount_identities(case: Convolution, word: int) -> None:
    """The two formulas of the module's docstring, on one pixel and one filter."""
    x = random_image(case, case.channels)[:1, :, :1, :1]
    weight = random_weight(case, (1, case.channels, 1, 1))
    w = binary.unpack_bits(binary.pack_weight_signs(weight, word), word * 100).flatten()
    for encoding in binary.ENCODINGS:
        bits = pack(x, encoding, 1, word)
        b = binary.unpack_bits(bits, word * 100).flatten()
        by_count = (
            case.channels - 2 * int((b ^ w).sum())
            if encoding == "signs"
            else 2 * int((b & w).sum()) - int(b.sum())
        )
        assert by_count == (encode(x, encoding) * signs(weight)).sum()


def test_threshold_moves_the_sign() -> None:
    x = torch.tensor([-1.0, 0.25, 0.5, 0.75]).reshape(1, 1, 1, 4).expand(1, 2, 1, 4)
    bits = matte.pack_signs(x, torch.tensor([0.5, -2.0]), 1, 8)
    assert bits.flatten().tolist() == [0b10, 0b10, 0b11, 0b11]


def test_zero_and_minus_zero_are_positive() -> None:
    assert matte.pack_signs(torch.tensor([0.0, -0.0]).reshape(1, 2, 1, 1), None, 1, 8).item() == 0b11


def test_half_rounds_to_zero_unit() -> None:
    x = torch.tensor([0.5, 0.5000001, -3.0, 3.0]).reshape(1, 4, 1, 1)
    assert matte.pack_units(x, 1, 8).item() == 0b1010


def test_planes_are_the_bits_of_the_rounded_codes() -> None:
    x = torch.tensor([-1.0, 0.1, 0.5, 0.7, 0.9, 2.0]).reshape(1, 6, 1, 1)
    low, high = (matte.pack_plane(x, plane, 1, 8).item() for plane in (0, 1))
    codes = [(low >> c & 1) + 2 * (high >> c & 1) for c in range(6)]
    assert codes == [0, 0, 2, 2, 3, 3], "3 * 0.5 is a tie and rounds to the even 2"


@settings(max_examples=40, deadline=None)
@given(convolutions(), words, borders)
def test_two_planes_convolve_codes(case: Convolution, word: int, border: int) -> None:
    x = random_image(case, case.groups * case.channels) / 1.5
    weight = random_weight(case, (case.groups * case.outputs, case.channels, *case.kernel))
    geometry = (case.stride, case.padding, case.dilation, case.groups, "units", border)
    sums = [
        matte.binary_conv2d(
            matte.pack_plane(x, plane, case.groups, word),
            binary.pack_weight_signs(weight, word),
            case.channels,
            *geometry,
        )
        for plane in (0, 1)
    ]
    codes = (x.clamp(0, 1) * 3).round().double()
    assert torch.equal(sums[0] + 2 * sums[1], convolve(case, codes, signs(weight), case.groups, 3 * border))


def test_bit_order_and_padding() -> None:
    x = torch.full((1, 9, 1, 1), -1.0)
    x[0, [0, 8]] = 1.0
    assert matte.pack_signs(x, None, 1, 32).flatten().tolist() == [1, 1, 0, 0]
    assert matte.pack_signs(x, None, 3, 8).flatten().tolist() == [1, 0, 4]


@given(st.integers(1, 300))
def test_choose_word_wastes_least(channels: int) -> None:
    waste = {word: binary.bytes_per_group(channels, word) * 8 - channels for word in binary.WORDS}
    chosen = binary.choose_word(channels)
    assert waste[chosen] == min(waste.values())
    assert all(waste[word] > waste[chosen] for word in binary.WORDS if word > chosen)


@given(st.integers(1, 40), words, st.integers(0, 99))
def test_weights_round_trip(channels: int, word: int, seed: int) -> None:
    weight = torch.randn(3, channels, 2, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        binary.unpack_weight_signs(binary.pack_weight_signs(weight, word), channels), signs(weight).float()
    )
    depthwise = weight.reshape(-1, 1, 2, 3)
    packed = binary.pack_depthwise_signs(depthwise, word)
    assert torch.equal(binary.unpack_depthwise_signs(packed, 3 * channels), signs(depthwise).float())


def test_schemas_and_shape_functions_agree_with_references() -> None:
    x = torch.randn(2, 12, 5, 6)
    bits = matte.pack_signs(x, None, 2, 8)
    weight = binary.pack_weight_signs(torch.randn(4, 6, 3, 3), 8)
    depthwise = binary.pack_depthwise_signs(torch.randn(12, 1, 3, 3), 16)
    calls = [
        (matte.pack_signs.default, (x, torch.zeros(12), 2, 8)),
        (matte.pack_signs.default, (x.to(memory_format=torch.channels_last), None, 2, 8)),
        (matte.pack_units.default, (x, 1, 128)),
        (matte.pack_plane.default, (x, 1, 2, 16)),
        (matte.binary_conv2d.default, (bits, weight, 6, [2, 1], [1, 1], [1, 1], 2, "signs", 0)),
        (
            matte.binary_depthwise_conv2d.default,
            (matte.pack_units(x, 1, 16), depthwise, 12, [1, 1], [0, 2], [1, 2], "units", 1),
        ),
    ]
    for op, arguments in calls:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


class Binarized(torch.nn.Module):
    """A lowered layer, for export."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        bits = matte.pack_signs(x, None, 1, 8)
        return matte.binary_conv2d(bits, weight, 16, [2, 2], [1, 1], [1, 1], 1, "signs", 0)


def test_shapes_stay_symbolic_in_export() -> None:
    x, weight = torch.randn(2, 16, 24, 32), binary.pack_weight_signs(torch.randn(4, 16, 3, 3), 8)
    dims = {0: torch.export.Dim("n"), 2: 8 * torch.export.Dim("h"), 3: 8 * torch.export.Dim("w")}
    program = torch.export.export(Binarized(), (x, weight), dynamic_shapes=(dims, None))
    other = torch.randn(1, 16, 40, 8)
    assert torch.equal(program.module()(other, weight), Binarized()(other, weight))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary.bytes_per_group(8, 24), "word is 24"),
        (lambda: matte.pack_plane(torch.zeros(1, 8, 1, 1, device="meta"), 2, 1, 8), "plane is 2"),
        (lambda: binary.unpack_image(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), 8, 1, "bits"), "'bits'"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
