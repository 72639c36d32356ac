"""Two learned numbers for each quantized layer: of its output, y' = gamma y + beta, or of its weights,
W' = gamma W_hat + beta; inserted to be learned, then absorbed.

Of the output, gamma goes into the weights' scales and the bias, beta into the bias: the codes stay. Of the weights,
gamma goes into the scales, and beta, which no integer zero point can say, becomes a convolution of its own with every
code 1: conv(x, gamma W_hat + beta) = conv(x, gamma W_hat) + conv(x, beta).

Of the output, each channel may have its own two: scales and bias have one for each channel anyway.

Source: PTQ4VM eq. (2) for weights; its published code for outputs. Two for each channel are our addition.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.convolutions import bias_of, groups_of
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.program import Program

aten = torch.ops.aten
conv2d = aten.conv2d.default
ApplyTo = Literal["output", "weights"]
Numbers = Literal["layer", "channel"]
SMALLEST_GAMMA = 1e-3


@dataclass(frozen=True)
class Layer:
    """A quantizer of weights, by the path it is called by, with the convolutions that read it."""

    path: str
    call: fx.Node
    readers: tuple[fx.Node, ...]


def layers_of(program: Program) -> list[Layer]:
    """Every quantized weight that only convolutions with a held bias, or without one, read."""
    calls = [
        call for call in program.called_modules(FakeQuantize) if call.all_input_nodes[0].op == "get_attr"
    ]
    layers = [Layer(str(call.target).rpartition(".")[0], call, tuple(call.users)) for call in calls]
    return [layer for layer in layers if all(map(_is_absorbing, layer.readers))]


def _is_absorbing(node: fx.Node) -> bool:
    bias = bias_of(node)
    return node.target is conv2d and (bias is None or bias.op == "get_attr")


def insert(
    program: Program, layer: Layer, apply_to: ApplyTo, numbers: Numbers = "layer"
) -> tuple[nn.Parameter, nn.Parameter]:
    """Let gamma = 1 and beta = 0 act on a layer; both are float32 scalars, or (O,1,1) with one for each channel."""
    outputs = len(program.tensor(layer.call.all_input_nodes[0]))
    shape = (outputs, 1, 1) if numbers == "channel" else ()
    gamma, beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
    held = [
        program.constant(program.free_path(f"{layer.path}.{name}"), value)
        for name, value in (("gamma", gamma), ("beta", beta))
    ]
    for reader in layer.readers:
        if apply_to == "output":
            with program.graph.inserting_after(reader):
                product = _call(program, reader, aten.mul.Tensor, reader, held[0])
            with program.graph.inserting_after(product):
                total = _call(program, reader, aten.add.Tensor, product, held[1])
            _let_others_read(reader, total, product)
        else:
            with program.graph.inserting_before(reader):
                product = _call(program, layer.call, aten.mul.Tensor, layer.call, held[0])
                total = _call(program, layer.call, aten.add.Tensor, product, held[1])
            reader.replace_input_with(layer.call, total)
    return gamma, beta


@torch.no_grad()
def absorb(program: Program, layer: Layer, gamma: Tensor, beta: Tensor, apply_to: ApplyTo) -> None:
    """Change the layer as learned, with weights that nothing else reads."""
    gamma, beta = (number.reshape(-1) if number.ndim else number for number in (gamma, beta))
    quantizer = program.module(layer.call, FakeQuantize)
    weight = program.tensor(layer.call.all_input_nodes[0])
    codes = quantizer.codes(weight)
    quantizer.scale.copy_(quantizer.scale.abs() * gamma)
    scale, zero_point = quantizer.affine(weight.ndim)
    weight.copy_((codes.float() - zero_point) * scale)
    for reader in layer.readers:
        if apply_to == "output":
            _shift_output(program, layer, reader, gamma, beta)
        elif beta:
            _add_constant_weights(program, layer, reader, beta, tuple(weight.shape))


def _shift_output(program: Program, layer: Layer, reader: fx.Node, gamma: Tensor, beta: Tensor) -> None:
    bias = bias_of(reader)
    outputs = len(program.tensor(layer.call.all_input_nodes[0]))
    old = torch.zeros(outputs) if bias is None else program.tensor(bias).detach()
    new = program.constant(program.free_path(f"{layer.path}.bias"), nn.Parameter(gamma * old + beta))
    x, weight, *rest = reader.args
    reader.args = (x, weight, new, *rest[1:])
    reader.kwargs = {name: value for name, value in reader.kwargs.items() if name != "bias"}


def _add_constant_weights(
    program: Program, layer: Layer, reader: fx.Node, beta: Tensor, shape: tuple[int, ...]
) -> None:
    """Add the convolution with every weight beta; one output channel will do where all read the same inputs."""
    groups = groups_of(reader)
    ones = nn.Parameter(torch.full((1 if groups == 1 else shape[0], *shape[1:]), float(beta)))
    bits = program.facts(reader).precision
    quantizer = FakeQuantize(QuantizerConfig(bits.weight_bits if bits else 8, symmetric=True))
    quantizer.set_affine(beta.abs(), torch.zeros((), dtype=torch.int32))
    path = program.free_path(f"{layer.path}.constant")
    held = program.constant(f"{path}.weight", ones)
    program.add_module(f"{path}.weight_quantizer", quantizer)
    with program.graph.inserting_after(reader):
        total = _call(program, reader, aten.add.Tensor, reader, reader)
    with program.graph.inserting_before(total):
        call = program.graph.call_module(f"{path}.weight_quantizer", (held,))
        call.meta["facts"] = program.facts(layer.call).but(shape=tuple(ones.shape))
        more = program.graph.call_function(
            conv2d, (reader.args[0], call, None, *reader.args[3:]), _rest(reader)
        )
        more.meta["facts"] = program.facts(reader)
    _let_others_read(reader, total, total)
    total.args = (reader, more)


def _let_others_read(old: fx.Node, new: fx.Node, stays: fx.Node) -> None:
    """Every reader of `old` but one reads `new`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not stays)


def _rest(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name != "bias"}


def _call(program: Program, origin: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    node = program.graph.call_function(target, arguments)
    node.meta["facts"] = program.facts(origin).but(precision=None)
    return node
