import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.onnx import Onnx
from mattecompress.backends.onnx.translate import refusal
from mattecompress.modules.batch_norm import BatchNorm2d, BatchNormConfig
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.program import Program
from tests.backends.onnx.nets import both, compiled, image, initializers, insert_module, operators, program_of
from tests.ops.cases import Convolution, convolutions

aten = torch.ops.aten


def quantizer(bits: int, symmetric: bool, low: torch.Tensor, high: torch.Tensor) -> FakeQuantize:
    config = QuantizerConfig(bits, symmetric, low.shape[0] if low.ndim else None)
    module = FakeQuantize(config)
    module.set_affine(*config.affine(low, high))
    return module


def quantized_convolution(weight_bits: int, activation_bits: int, symmetric: bool) -> Program:
    weight = image(6, 4, 3, 3, seed=2)
    program = program_of(lambda x, weight: F.conv2d(x, weight, padding=1), (2, 4, 7, 6), weight=weight)
    (convolution,) = program.find(aten.conv2d.default)
    lows, highs = weight.flatten(1).amin(1), weight.flatten(1).amax(1)
    insert_module(
        program,
        convolution,
        0,
        quantizer(activation_bits, symmetric, torch.tensor(-3.0), torch.tensor(4.1)),
        "a",
    )
    insert_module(program, convolution, 1, quantizer(weight_bits, symmetric, lows, highs), "w")
    return program


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize("exact", [True, False])
def test_fake_quantizers_become_pairs(weight_bits, symmetric, exact):
    """Weights become codes of their own width, activations 8-bit codes clipped to theirs."""
    for activation_bits in (4, 8):
        program = quantized_convolution(weight_bits, activation_bits, symmetric)
        artifact = Onnx(verify=False, exact=exact).compile(program)
        x = image(2, 4, 7, 6, spread=3.0)
        with torch.no_grad():
            expected = program.run(x=x)["y"]
        torch.testing.assert_close(artifact.run(x=x)["y"], expected, rtol=0, atol=2e-5)
        clip = ["Clip"] if activation_bits < 8 else []
        pair = ["QuantizeLinear", "DequantizeLinear"]
        assert operators(artifact) == [*clip, *pair, "DequantizeLinear", "Conv"]
        kind = f"{'' if symmetric else 'U'}INT{4 if weight_bits <= 4 else 8}"
        assert initializers(artifact)["w.codes"] == getattr(onnx.TensorProto, kind)


@given(st.integers(2, 8), st.booleans(), st.floats(-5, 0), st.floats(0.01, 5))
@settings(max_examples=20, deadline=None)
def test_a_fake_quantizer_is_exact(bits, symmetric, low, high):
    """Also on ties between codes and beyond the outermost codes."""
    module = quantizer(bits, symmetric, torch.tensor(low), torch.tensor(high))
    ties = (torch.arange(-300, 300) + 0.5) * module.scale.detach()
    x = torch.cat([ties, ties * 1.0001, image(100)])
    program = program_of(lambda x: x + 0, tuple(x.shape))
    insert_module(program, program.outputs["y"], 0, module, "q")
    expected, given_value = both(program, x)
    assert torch.equal(expected, given_value)


def test_a_quantizer_with_many_scales_needs_a_constant():
    program = program_of(lambda x: x * 2, (3, 4))
    insert_module(program, program.outputs["y"], 0, FakeQuantize(QuantizerConfig(channels=3)), "q")
    reasons = [refusal(program, node) for node in program.called_modules()]
    assert reasons == ["a quantizer with many scales on a computed tensor"]


@given(
    convolutions(channels=6, outputs=4),
    st.sampled_from([("bnn", 1), ("dorefa", 1), ("dorefa", 2), ("recu", 1), ("react", 1)]),
    st.booleans(),
    st.sampled_from([0, 1]),
)
@settings(max_examples=25, deadline=None)
def test_binary_convolutions(case: Convolution, form, bias, border):
    """Bit for bit, with scale and bias."""
    method, activations = form
    config = BinaryConvConfig(
        case.channels * case.groups,
        case.outputs * case.groups,
        case.kernel,
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
        bias,
        method,
        border,
        activations,
    )
    module = BinaryConv2d(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(image(*parameter.shape, seed=case.seed))
    x = image(case.batch, config.inputs, case.height, case.width, seed=case.seed)
    program = program_of(lambda x: x + 0, tuple(x.shape))
    insert_module(program, program.graph.output_node().args[0][0], 0, module, "conv")
    program.graph_module.eval()
    expected, given_value = both(program, x)
    assert torch.equal(expected, given_value)


def test_batch_norm():
    module = BatchNorm2d(BatchNormConfig(4, eps=1e-3)).eval()
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean):
            tensor.copy_(image(4))
        module.running_var.copy_(image(4).abs() + 0.1)
    program = program_of(lambda x: x * 2, (2, 4, 5, 6))
    insert_module(program, program.outputs["y"], 0, module, "norm")
    expected, given_value = both(program, image(2, 4, 5, 6))
    torch.testing.assert_close(given_value, expected, rtol=1e-5, atol=1e-5)
    assert "BatchNormalization" in operators(compiled(program))
    module.train()
    (call,) = program.called_modules()
    program.graph_module.norm.train()
    assert "training mode" in (refusal(program, call) or "")
