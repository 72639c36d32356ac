import onnx
import onnx.parser
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.onnx import Onnx, functions
from mattecompress.backends.onnx.lowered import RULES
from mattecompress.backends.onnx.translate import refusal
from mattecompress.ops import binary, integer
from tests.backends.onnx.nets import assert_same, both, compiled, image, initializers, operators, program_of
from tests.ops.cases import Convolution, convolutions, draw_mask

matte = torch.ops.matte
words = st.sampled_from(binary.WORDS)
encodings = st.sampled_from(binary.ENCODINGS)
borders = st.sampled_from([0, 1])


def input_of(case: Convolution, channels: int) -> torch.Tensor:
    return image(case.batch, channels, case.height, case.width, seed=case.seed)


@given(convolutions(channels=20), words, st.booleans())
@settings(max_examples=15, deadline=None)
def test_packing(case: Convolution, word: int, thresholded: bool):
    channels = case.channels * case.groups
    tensors = {"threshold": image(channels, seed=1)} if thresholded else {}
    x = input_of(case, channels)
    assert_same(lambda x, threshold=None: matte.pack_signs(x, threshold, case.groups, word), x, 0, **tensors)
    assert_same(lambda x: matte.pack_units(x, case.groups, word), x, 0)
    for plane in (0, 1):
        assert_same(lambda x, plane=plane: matte.pack_plane(x, plane, case.groups, word), x / 1.5, 0)


@given(convolutions(channels=20, outputs=6), words, encodings, borders)
@settings(max_examples=15, deadline=None)
def test_binary_convolution(case: Convolution, word: int, encoding: str, border: int):
    channels, outputs = case.channels * case.groups, case.outputs * case.groups
    weight = binary.pack_weight_signs(image(outputs, case.channels, *case.kernel, seed=case.seed + 1), word)

    def convolve(x, weight):
        pack = matte.pack_signs(x, None, case.groups, word)
        bits = pack if encoding == "signs" else matte.pack_units(x, case.groups, word)
        return matte.binary_conv2d(
            bits,
            weight,
            case.channels,
            case.stride,
            case.padding,
            case.dilation,
            case.groups,
            encoding,
            border,
        )

    assert_same(convolve, input_of(case, channels), 0, weight=weight)


@given(convolutions(channels=20), words, encodings, borders)
@settings(max_examples=15, deadline=None)
def test_binary_depthwise_convolution(case: Convolution, word: int, encoding: str, border: int):
    weight = binary.pack_depthwise_signs(image(case.channels, 1, *case.kernel, seed=case.seed + 1), word)

    def convolve(x, weight):
        signs = encoding == "signs"
        bits = matte.pack_signs(x, None, 1, word) if signs else matte.pack_units(x, 1, word)
        return matte.binary_depthwise_conv2d(
            bits, weight, case.channels, case.stride, case.padding, case.dilation, encoding, border
        )

    assert_same(convolve, input_of(case, case.channels), 0, weight=weight)


@given(convolutions(channels=12, outputs=6), st.integers(2, 8), st.data())
@settings(max_examples=20, deadline=None)
def test_quantized_convolution(case: Convolution, bits: int, data: st.DataObject):
    channels, outputs = case.channels * case.groups, case.outputs * case.groups
    high = 1 << bits - 1
    generator = torch.Generator().manual_seed(case.seed)
    shape = (outputs, case.channels, *case.kernel)
    codes = torch.randint(-high, high, shape, generator=generator, dtype=torch.int8)
    weight = integer.pack_int4(codes) if bits <= 4 else codes
    zero_point = data.draw(st.integers(0, 255))

    def convolve(x, weight):
        q = matte.quantize(x, 0.01, zero_point, 8)
        return matte.quantized_conv2d(
            q, weight, zero_point, bits, case.kernel, case.stride, case.padding, case.dilation, case.groups
        )

    assert_same(convolve, input_of(case, channels), 0, weight=weight)


def test_the_largest_sums_are_exact():
    """Every product at its extreme: no saturation of pairs, no sum rounded to float32."""
    weight = torch.full((2, 512, 3, 3), -128, dtype=torch.int8)

    def convolve(x, weight):
        q = matte.quantize(x, 1.0, 0, 8)
        return matte.quantized_conv2d(q, weight, 0, 8, [3, 3], [1, 1], [0, 0], [1, 1], 1)

    expected, given_value = both(
        program_of(convolve, (1, 512, 5, 5), weight=weight), torch.full((1, 512, 5, 5), 999.0)
    )
    assert torch.equal(expected, given_value)
    assert int(expected.min()) == -128 * 255 * 512 * 9


@given(st.floats(1e-3, 10), st.integers(2, 8), st.data())
@settings(max_examples=20, deadline=None)
def test_quantize_and_back(scale: float, bits: int, data: st.DataObject):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    x = torch.cat([image(1, 3, 5, 7).flatten(), (torch.arange(-40, 40) + 0.5) * scale])
    assert_same(lambda x: matte.quantize(x, scale, zero_point, bits), x, 0)
    assert_same(
        lambda x: matte.dequantize(matte.quantize(x, scale, zero_point, bits), scale, zero_point), x, 0
    )


@pytest.mark.parametrize(("name", "bound"), [("sigmoid", 100), ("tanh", 15)])
def test_functions_give_the_references_bits(name: str, bound: float):
    x = torch.cat([torch.linspace(-bound, bound, 40_000), torch.linspace(-1, 1, 40_000)])
    assert_same(getattr(matte, name), x.reshape(1, 8, 100, 100), 0)


def test_a_sigmoid_is_rounded_before_it_gates():
    """ONNX Runtime turns x * (1 / s) into x / s."""
    x = torch.linspace(-9, 9, 80_000).reshape(1, 8, 100, 100)
    assert_same(lambda x: matte.sigmoid(x) * (x + 3), x, 0)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_plane_mean(batch: int, channels: int, height: int, width: int):
    assert_same(matte.plane_mean, image(batch, channels, height, width), 0)


@given(
    st.tuples(st.integers(1, 19), st.integers(1, 19)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_resize(size: tuple[int, int], result: tuple[int, int], align: bool):
    x = image(2, 3, *size)
    assert_same(lambda x: matte.resize_bilinear(x, result, align, None), x, 0)
    assert_same(lambda x: matte.resize_bilinear(x, None, False, [2.0, 2.0]), x, 0)


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 5), st.integers(1, 4)),
    st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=15, deadline=None)
def test_masked_convolutions(size: tuple[int, int, int, int], density: float):
    batch, height, across, width = size
    x = draw_mask((batch, 3, height, across * width), density, seed=height) * 8
    signs = binary.pack_weight_signs(image(4, 3, 3, 3), 8)
    codes = torch.randint(-128, 128, (4, 3, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    weight = codes.float()
    geometry = ([1, 1], [1, 1], [1, 1], 1)

    def convolve(x, signs, codes, weight):
        tiles = matte.mask_tiles(x[:, :1], width)
        bits, q = matte.pack_signs(x - 0.5, None, 1, 8), matte.quantize(x, 1.0, 3, 8)
        results = (
            matte.masked_binary_conv2d(bits, signs, tiles, width, 3, *geometry, "signs", 0).float(),
            matte.masked_quantized_conv2d(q, codes, tiles, width, 3, 8, [3, 3], *geometry).float(),
            matte.masked_conv2d(x.round(), weight, None, tiles, width, *geometry),
        )
        base = x[:, :1].expand(-1, 4, -1, -1)
        for compact in results:
            base = matte.scatter_tiles(compact, tiles, base)
            base = base + matte.spread_tiles(compact, tiles, [height, across * width])
        return base

    assert_same(convolve, x, 0, signs=signs, codes=codes, weight=weight)


@pytest.mark.parametrize(
    ("function", "standard"),
    [
        (lambda x: matte.sigmoid(x), "Sigmoid"),
        (lambda x: matte.tanh(x), "Tanh"),
        (lambda x: matte.plane_mean(x), "GlobalAveragePool"),
        (lambda x: matte.resize_bilinear(x, [9, 7], False, None), "Resize"),
    ],
)
def test_standard_operators_where_speed_counts(function, standard: str):
    x = image(1, 3, 6, 5)
    program = program_of(function, (1, 3, 6, 5))
    artifact = Onnx(exact=False).compile(program)
    assert operators(artifact) == [standard]
    torch.testing.assert_close(artifact.run(x=x)["y"], program.run(x=x)["y"], rtol=1e-5, atol=1e-6)


def test_what_lies_between_codes_is_not_fused():
    """ONNX Runtime would merge these into integer kernels, which round once less."""

    def average(x):
        q = matte.quantize(x, 0.05, 31, 8)
        pooled = torch.sigmoid(torch.nn.functional.avg_pool2d(matte.dequantize(q, 0.05, 31), 2))
        return matte.quantize(pooled + matte.dequantize(q, 0.05, 31)[:, :, ::2, ::2], 0.013, 90, 8)

    assert_same(average, image(1, 4, 32, 32), 0)


def four_bit(x, weight):
    q = matte.quantize(x, 0.1, 3, 4)
    sums = matte.quantized_conv2d(q, weight, 3, 4, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    return matte.pack_signs(sums * 0.5, None, 1, 8)


def test_functions_keep_their_names_through_simplification():
    weight = integer.pack_int4(torch.randint(-8, 8, (5, 3, 3, 3), dtype=torch.int8))
    artifact = compiled(program_of(four_bit, (1, 3, 6, 6), weight=weight))
    called = [name for name in operators(artifact) if name.startswith("matte::")]
    assert called == ["matte::quantize", "matte::quantized_conv2d", "matte::pack_signs"]
    held = {function.name for function in onnx.load_from_string(artifact.data).functions}
    assert held == {"quantize", "quantized_conv2d", "pack_signs", "pack_bits"}
    assert initializers(artifact)["weight.int4"] == onnx.TensorProto.INT4


def test_a_zero_point_outside_the_codes_is_refused():
    program = program_of(lambda x: matte.dequantize(matte.quantize(x, 0.1, -3, 8), 0.1, -3), (1, 3, 6, 6))
    reasons = [refusal(program, node) for node in program.operations()]
    assert reasons == ["zero_point -3 is no uint8 code"] * 2


def test_every_operation_has_a_function():
    """Masked convolutions are the dense ones and `gather_tiles`."""
    names = {target._schema.name.removeprefix("matte::") for target in RULES}
    masked = {name for name in names if name.startswith("masked_")}
    assert names - masked <= set(functions.FUNCTIONS)
    assert {f"masked_{name}" for name in ("conv2d", "binary_conv2d", "quantized_conv2d")} == masked
    assert {name for names in functions.NEEDS.values() for name in names} <= set(functions.FUNCTIONS)


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_functions_are_made_of_standard_operators(name):
    function = onnx.parser.parse_function(functions.source(name))
    onnx.checker.check_function(function)
    own = {node.op_type for node in function.node if node.domain == functions.DOMAIN}
    assert own == set(functions.NEEDS.get(name, ()))
