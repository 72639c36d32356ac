"""Called modules, as standard operators: batch norm, fake quantizers as QDQ pairs, binary convolutions.

A fake quantizer of a constant becomes integer codes (INT8, UINT8; INT4, UINT4 up to four bits) and a
`DequantizeLinear`; one of a computed tensor becomes `QuantizeLinear` and `DequantizeLinear` over 8-bit codes, behind
a `Clip` where fewer bits are meant: a value clipped to the outermost codes' values rounds to those codes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.backends.onnx.spatial import pads
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.quantizer import FakeQuantize

Rule = Callable[[Call], str]


def _batch_norm(call: Call) -> str:
    module = call.module
    assert isinstance(module, BatchNorm2d)
    if module.training or module.running_mean is None or module.running_var is None:
        raise RefusalError("batch norm in training mode: call eval() on the program's graph module")
    tensors = {
        "weight": module.weight,
        "bias": module.bias,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
    }
    names = [call.writer.tensor(f"{call.node.target}.{name}", value) for name, value in tensors.items()]
    return call.emit("BatchNormalization", call.value("0"), *names, epsilon=float(module.eps))


@torch.no_grad()
def _fake_quantize(call: Call) -> str:
    module = call.module
    assert isinstance(module, FakeQuantize)
    scale, zero_point = (value.flatten() for value in module.affine(1))
    if module.config.channels is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    if int(zero_point.min()) < module.config.low or int(zero_point.max()) > module.config.high:
        raise RefusalError(f"the zero point of {call.node.target} is none of its codes")
    source = call["0"]
    if isinstance(source, fx.Node) and source.op == "get_attr":
        return _dequantized_constant(call, module, scale, zero_point)
    if module.config.channels is not None:
        raise RefusalError("a quantizer with many scales on a computed tensor")
    return _quantized_and_back(call, module, scale, zero_point)


def _dequantized_constant(call: Call, module: FakeQuantize, scale: Tensor, zero_point: Tensor) -> str:
    writer, path = call.writer, str(call.node.target)
    element = f"{'' if module.config.symmetric else 'U'}INT{4 if module.config.bits <= 4 else 8}"
    codes = module.codes(call.constant("0"))
    constants = (
        writer.tensor(f"{path}.codes", codes, element),
        writer.tensor(f"{path}.scale", scale),
        writer.tensor(f"{path}.zero_point", zero_point.to(codes.dtype), element),
    )
    return call.emit("DequantizeLinear", *constants, axis=0)


def _quantized_and_back(call: Call, module: FakeQuantize, scale: Tensor, zero_point: Tensor) -> str:
    writer, path, config = call.writer, str(call.node.target), module.config
    code = torch.int8 if config.symmetric else torch.uint8
    step = writer.tensor(f"{path}.scale", scale)
    zero = writer.tensor(f"{path}.zero_point", zero_point.to(code))
    value = call.value("0")
    if config.bits < 8:
        ends = [float((end - zero_point) * scale) for end in (config.low, config.high)]
        value = call.emit("Clip", value, *(writer.numbers(end, torch.float32) for end in ends))
    return call.emit("DequantizeLinear", call.emit("QuantizeLinear", value, step, zero), step, zero)


@torch.no_grad()
def _binary_convolution(call: Call) -> str:
    """scale * (signs of w convolved with signs, units or codes of x) + bias; the sum in the middle is exact.

    `Round` changes no sum: it keeps optimizers from multiplying the scale into the signs.
    """
    module = call.module
    assert isinstance(module, BinaryConv2d)
    config, writer, path = module.config, call.writer, str(call.node.target)
    bits, padding = _binary_input(call, module), pads(config.padding)
    if config.border:
        amounts, outside = call.integers(*padding), writer.numbers(float(config.levels), torch.float32)
        bits, padding = call.emit("Pad", bits, amounts, outside, call.integers(2, 3)), [0, 0, 0, 0]
    sums = call.emit(
        "Conv",
        bits,
        writer.tensor(f"{path}.signs", module.binary_weight()),
        kernel_shape=list(config.kernel),
        strides=list(config.stride),
        pads=padding,
        dilations=list(config.dilation),
        group=config.groups,
    )
    whole = call.emit("Round", sums)
    scaled = call.emit("Mul", whole, writer.tensor(f"{path}.scale", module.output_scale()))
    if module.bias is None:
        return scaled
    return call.emit("Add", scaled, writer.tensor(f"{path}.bias", module.bias[:, None, None]))


def _binary_input(call: Call, module: BinaryConv2d) -> str:
    """Sign(0) is +1, unlike ONNX's `Sign`, hence the comparison."""
    writer, value = call.writer, call.value("0")
    if module.config.activations > 1:
        ends = [writer.numbers(end, torch.float32) for end in (0.0, 1.0)]
        levels = writer.numbers(float(module.config.levels), torch.float32)
        return call.emit("Round", call.emit("Mul", call.emit("Clip", value, *ends), levels))
    if module.encoding == "units":
        above = call.emit("Greater", value, writer.numbers(0.5, torch.float32))
        return call.cast(above, torch.bool, torch.float32)
    if module.training and module.config.method == "recu":
        raise RefusalError("recu in training mode: call eval() on the program's graph module")
    if module.activation_bias is not None:
        shift = writer.tensor(f"{call.node.target}.activation_bias", module.activation_bias[:, None, None])
        value = call.emit("Add", value, shift)
    zero, plus, minus = (writer.numbers(number, torch.float32) for number in (0.0, 1.0, -1.0))
    return call.emit("Where", call.emit("GreaterOrEqual", value, zero), plus, minus)


RULES: Mapping[str, Rule] = {
    "BatchNorm2d": _batch_norm,
    "BinaryConv2d": _binary_convolution,
    "FakeQuantize": _fake_quantize,
}
"""By class name, as in `mattecompress.modules.MODULES`."""
