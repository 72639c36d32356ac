import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mattecompress.analysis.propagation import propagate
from mattecompress.capturing.tracing import capture
from mattecompress.facts import Facts, Precision
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.passes.lower_quantized import LowerQuantized
from mattecompress.passes.quantize import Quantize
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.running.stream import Stream
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.ops.cases import Convolution, convolutions

aten, matte = torch.ops.aten, torch.ops.matte
conv2d, quantized_conv2d = aten.conv2d.default, matte.quantized_conv2d.default


def clips(height: int = 12, width: int = 16, frames: int = 3) -> list[Tensor]:
    return [torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(5))]


@pytest.fixture(
    scope="module", params=["quantize", "quantize{weights=4}", "quantize{weights=2 activations=5}"]
)
def quantized(request: pytest.FixtureRequest, tiny: Program) -> Program:
    return parse_pipeline(f"canonicalize,fold-batch-norm,{request.param}").run(tiny, Context(clips=clips()))


def configured(kind: str, shape: tuple[int, ...], bits: int, generator: torch.Generator) -> FakeQuantize:
    """A quantizer of weights with a scale per channel or for all, or of activations with or without sign."""
    symmetric = kind != "unsigned"
    module = FakeQuantize(QuantizerConfig(bits, symmetric, shape[0] if kind == "channels" else None))
    zero_point = 0 if symmetric else int(torch.randint(2**bits, (), generator=generator))
    scale = torch.rand(module.scale.shape, generator=generator) * 0.3 + 0.01
    module.set_affine(scale, torch.full(module.scale.shape, zero_point))
    return module


def layer(
    x: FakeQuantize | None,
    weight: FakeQuantize | None,
    case: Convolution,
    bias: bool = True,
    relu: bool = False,
) -> Program:
    """One convolution, its operands quantized where a quantizer is given; `relu` also reads the quantized input."""
    generator = torch.Generator().manual_seed(case.seed)
    root, graph = nn.Module(), fx.Graph()
    channels, outputs = case.channels * case.groups, case.outputs * case.groups
    shapes = {"weight": (outputs, case.channels, *case.kernel), "bias": (outputs,)}
    root.conv = nn.Module()
    for name, shape in shapes.items():
        root.conv.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))
    frame = graph.placeholder("x")
    frame.meta["facts"] = Facts((case.batch, channels, case.height, case.width), torch.float32)
    operands = [frame, graph.get_attr("conv.weight")]
    for index, (name, quantizer) in enumerate((("input", x), ("weight", weight))):
        if quantizer is not None:
            root.conv.add_module(f"{name}_quantizer", quantizer)
            operands[index] = graph.call_module(f"conv.{name}_quantizer", (operands[index],))
    shift = graph.get_attr("conv.bias") if bias else None
    geometry = [list(pair) for pair in (case.stride, case.padding, case.dilation)]
    outputs_of_graph = [graph.call_function(conv2d, (*operands, shift, *geometry, case.groups))]
    if relu:
        outputs_of_graph.append(graph.call_function(aten.relu.default, (operands[0],)))
    graph.output(tuple(outputs_of_graph))
    names = ("y", "z")[: len(outputs_of_graph)]
    return propagate(Program("layer", fx.GraphModule(root, graph).eval(), names))


CASE = Convolution(1, 5, 6, 3, 2, 2, (3, 3), (1, 1), (1, 1), (1, 1), 0)


def frame_of(program: Program, seed: int = 0) -> Tensor:
    shape = program.facts(program.inputs[0]).sizes
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 5


@settings(deadline=None, max_examples=60)
@given(
    convolutions(channels=12, outputs=6),
    st.sampled_from(["unsigned", "signed"]),
    st.sampled_from(["channels", "all"]),
    st.integers(2, 8),
    st.integers(2, 8),
    st.booleans(),
)
def test_computes_the_same(
    case: Convolution, inputs: str, weights: str, activation_bits: int, weight_bits: int, bias: bool
) -> None:
    """The integers are exact: one multiplication and one addition of them, and of their float64 sum, are left."""
    generator = torch.Generator().manual_seed(case.seed)
    x = configured(inputs, (1,), activation_bits, generator)
    weight = configured(weights, (case.outputs * case.groups,), weight_bits, generator)
    program = layer(x, weight, case, bias)
    lowered = LowerQuantized(strict=True)(program)
    assert lowered.modified and lowered.notes == "1 convolutions in integers, reading 1 quantized tensors"
    frame = frame_of(program, case.seed)
    result = lowered.program.run(x=frame)["y"]
    exact = program.clone()
    exact.graph_module.double()
    conv = exact.module(program.called_modules(FakeQuantize)[1])(exact.graph_module.conv.weight)
    read = program.module(program.called_modules(FakeQuantize)[0])(frame).double()
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    shift = exact.graph_module.conv.bias if bias else None
    expected = torch.conv2d(read, conv, shift, *geometry)
    magnitude = torch.conv2d(read.abs(), conv.abs(), None if shift is None else shift.abs(), *geometry)
    assert ((result - expected).abs() <= 4e-7 * magnitude.clamp_min(1e-6)).all()


def test_golden(tiny: Program, golden) -> None:
    program = parse_pipeline("canonicalize,fold-batch-norm,quantize{weights=4}").run(
        tiny, Context(clips=clips())
    )
    text = print_program(LowerQuantized()(program).program)
    text = re.sub(r"(matte.quantize.default\(%\w+), \S+", r"\1, ...", text)
    golden(re.sub(r"(\.(?:scale|weight_codes) \S+) \w+", r"\1 ...", text))


def test_leaves_integers_only(quantized: Program) -> None:
    result = LowerQuantized(strict=True)(quantized)
    program = result.program
    assert result.notes == "3 convolutions in integers, reading 3 quantized tensors"
    assert program.level is Level.LOWERED
    assert not program.find(conv2d) and len(program.find(quantized_conv2d)) == 3
    before = [quantized.facts(node).precision for node in quantized.find(conv2d)]
    assert [program.facts(node).precision for node in program.find(quantized_conv2d)] == before
    leaves = {name.rpartition(".")[2] for name in program.state_dict()}
    assert leaves == {"weight_codes", "scale", "shift"}


def test_streams_the_same(quantized: Program) -> None:
    """Within float32's rounding, but for an activation here and there that gets the neighbouring code."""
    lowered = LowerQuantized()(quantized).program
    for before, after in zip(
        Stream(quantized).over(clips()[0]), Stream(lowered).over(clips()[0]), strict=True
    ):
        for name, value in before.items():
            assert (after[name] - value).abs().mean() < 1e-4, name


def test_is_idempotent_and_prints_and_parses(quantized: Program) -> None:
    once = LowerQuantized()(quantized).program
    again = LowerQuantized()(once)
    assert not again.modified and again.program is once
    assert parse_program(print_program(once), once.state_dict()) == once
    assert print_program(LowerQuantized()(quantized).program) == print_program(once)


def test_float_programs_are_left_alone(tiny: Program) -> None:
    assert not LowerQuantized(strict=True)(tiny).modified


@pytest.mark.parametrize("bits", range(2, 9))
def test_small_weights_are_packed(bits: int) -> None:
    program = layer(FakeQuantize(QuantizerConfig(8)), FakeQuantize(QuantizerConfig(bits, True, 4)), CASE)
    codes = LowerQuantized()(program).program.state_dict()["conv.weight_codes"]
    if bits > 4:
        assert codes.dtype is torch.int8 and codes.shape == (4, 3, 3, 3)
    else:
        assert codes.dtype is torch.uint8 and codes.shape == (4, 14)


def test_other_readers_get_exact_values() -> None:
    unsigned, signed = FakeQuantize(QuantizerConfig(4)), FakeQuantize(QuantizerConfig(4, True, 4))
    program = layer(unsigned, signed, CASE, relu=True)
    lowered = LowerQuantized(strict=True)(program).program
    assert len(lowered.find(matte.quantize.default)) == 1
    assert len(lowered.find(matte.dequantize.default)) == 1
    frame = frame_of(program)
    assert torch.equal(lowered.run(x=frame)["z"], program.run(x=frame)["z"])


REFUSED = {
    "its input is not quantized": (None, QuantizerConfig(8, True, 4)),
    "its weights are not quantized constants": (QuantizerConfig(8), None),
    "its weights have a zero point": (QuantizerConfig(8), QuantizerConfig(8, False, 4)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_layer_without_integer_form_falls_back_and_says_so(reason: str) -> None:
    x, weight = (None if config is None else FakeQuantize(config) for config in REFUSED[reason])
    program = layer(x, weight, CASE)
    result = LowerQuantized()(program)
    assert (
        result.notes
        == f"0 convolutions in integers, reading {x is not None:d} quantized tensors; in float: conv ({reason})"
    )
    assert not result.program.called_modules(FakeQuantize)
    frame = frame_of(program)
    assert torch.equal(result.program.run(x=frame)["y"], program.run(x=frame)["y"])
    with pytest.raises(PreconditionError, match=f"no integer form for conv \\({reason}\\)"):
        LowerQuantized(strict=True)(program)


def test_refuses_scales_per_channel_of_computed_tensors() -> None:
    program = layer(FakeQuantize(QuantizerConfig(8, channels=1)), None, CASE)
    with pytest.raises(PreconditionError, match="@conv.input_quantizer has a scale per channel"):
        LowerQuantized()(program)


class Twice(nn.Module):
    """One layer on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)) * 2)


def test_shared_weights_are_stored_once() -> None:
    torch.manual_seed(0)
    program = capture(Twice().eval(), Signature((("x", (1, 3, 6, 6)),), ("y",)), "twice")
    program = Quantize()(program, Context(clips=clips(6, 6))).program
    lowered = LowerQuantized(strict=True)(program).program
    assert sorted(lowered.state_dict()) == [
        f"conv.{name}" for name in ("scale", "scale_1", "shift", "shift_1", "weight_codes")
    ]
    frame = clips(6, 6)[0][:1]
    torch.testing.assert_close(lowered.run(x=frame)["y"], program.run(x=frame)["y"], rtol=1e-5, atol=1e-6)


def test_mixes_with_float_layers(tiny: Program) -> None:
    text = "fold-batch-norm,quantize{exclude=[middle.*]},lower{strict=true}"
    program = parse_pipeline(f"canonicalize,{text}").run(tiny, Context(clips=clips()))
    assert len(program.find(conv2d)) == 1 and len(program.find(quantized_conv2d)) == 2
    assert {program.facts(node).precision for node in program.find(quantized_conv2d)} == {Precision(8, 8)}


@pytest.mark.slow
def test_rvm(rvm: Program) -> None:
    program = parse_pipeline("mse{weights=4}").run(rvm, Context(clips=clips(64, 96, 1)))
    result = LowerQuantized(strict=True)(program)
    assert result.notes == "78 convolutions in integers, reading 78 quantized tensors"
    frames = clips(64, 96, 2)[0]
    for before, after in zip(Stream(program).over(frames), Stream(result.program).over(frames), strict=True):
        assert (before["pha"] - after["pha"]).abs().mean() < 0.01
