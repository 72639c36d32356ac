"""y = conv(Q_a(x), Q_w(W)) + b  becomes  q = matte::quantize(x),  y = matte::quantized_conv2d(q, codes) * s + b

with s = s_a * s_w per output channel. Codes and sums of codes are exact integers, where the fake-quantized program
sums rounded products: the two differ by float32 rounding alone, though a later activation within that of a rounding
threshold can then get the neighbouring code. Signed activation codes become unsigned ones by a shift of the zero
point. Weights of up to 4 bits are stored two in a byte. Who reads a quantized tensor without being such a
convolution gets matte::dequantize of it, which is exact.

Source: the affine quantizer of BRECQ, QDrop and PTQ4VM eq. (3), multiplied out.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.analysis.operands import arguments_of
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.ops.integer import pack_int4
from mattecompress.passes.quantize import INPUT, WEIGHT, conv2d, layer_path, quantizer_of
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

aten, matte = torch.ops.aten, torch.ops.matte


@dataclass(frozen=True)
class LowerQuantized(Pass):
    """Turn fake-quantized convolutions into integer ones over stored codes; afterwards no fake quantizer is called.

    A convolution that has no integer form is computed in float on the same quantized values, and the pass's note
    names it with the reason.

    strict: refuse a program with such a convolution.
    """

    strict: bool = False
    name: ClassVar[str] = "lower-quantized"

    def requires(self, program: Program) -> None:
        """Computed tensors have one scale each; under strict, every quantized convolution has an integer form."""
        for call in program.called_modules(FakeQuantize):
            many = program.module(call, FakeQuantize).config.channels is not None
            expect(
                not many or _source(call).op == "get_attr",
                f"@{call.target} has a scale per channel for a computed tensor, which has no lowered form: "
                "give it one scale",
            )
        refusals = _refusals(program) if self.strict else {}
        expect(
            not refusals,
            f"no integer form for {_list(refusals)}: lower without strict to compute it in float",
        )

    def ensures(self, program: Program) -> None:
        """No fake quantizer is left."""
        expect(not program.called_modules(FakeQuantize), "a fake quantizer survived")

    def apply(self, program: Program, context: Context) -> str | None:
        """Lower the convolutions, then whatever else reads their quantizers."""
        calls = program.called_modules(FakeQuantize)
        if not calls:
            return None
        refusals = _refusals(program)
        layers = [node for node in _quantized_layers(program) if node not in refusals]
        writer = _Writer(program)
        for node in layers:
            writer.lower_convolution(node)
        for call in calls:
            writer.lower_readers(call)
        in_float = f"; in float: {_list(refusals)}" if refusals else ""
        return f"{len(layers)} convolutions in integers, reading {len(writer.quantized)} quantized tensors{in_float}"


def _source(call: fx.Node) -> fx.Node:
    (source,) = call.all_input_nodes
    return source


def _quantized_layers(program: Program) -> list[fx.Node]:
    """Convolutions that read a fake quantizer."""
    nodes = program.find(conv2d)
    return [node for node in nodes if any(quantizer_of(program, arg) for arg in node.args[: WEIGHT + 1])]


def _refusals(program: Program) -> dict[fx.Node, str]:
    """The quantized convolutions that have no integer form, with the reason."""
    reasons = {node: _refusal(program, node) for node in _quantized_layers(program)}
    return {node: reason for node, reason in reasons.items() if reason}


def _refusal(program: Program, node: fx.Node) -> str | None:
    x, weight = node.args[INPUT], node.args[WEIGHT]
    weight_quantizer = quantizer_of(program, weight)
    if quantizer_of(program, x) is None:
        return "its input is not quantized"
    if weight_quantizer is None or not isinstance(weight, fx.Node) or _source(weight).op != "get_attr":
        return "its weights are not quantized constants"
    if not weight_quantizer.config.symmetric:
        return "its weights have a zero point"
    if len(program.facts(node).shape) != 4:
        return f"it yields {program.facts(node).type_text}, integer convolutions yield (N,C,H,W)"
    return None


def _list(refusals: dict[fx.Node, str]) -> str:
    return ", ".join(f"{layer_path(node)} ({reason})" for node, reason in refusals.items())


class _Writer:
    """Writes nodes and constants into the program in place of calls."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.quantized: dict[fx.Node, fx.Node] = {}
        self.codes: dict[fx.Node, fx.Node] = {}

    def lower_convolution(self, node: fx.Node) -> None:
        """Replace one convolution and its bias."""
        arguments = arguments_of(node)
        x, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
        reader, stored = self.program.module(x, FakeQuantize), self.program.module(weight, FakeQuantize)
        path, values = layer_path(node), self.program.tensor(_source(weight))
        geometry = [_pair(arguments[name]) for name in ("stride", "padding", "dilation")]
        scale = (reader.affine(0)[0] * stored.affine(1)[0]).detach().expand(len(values))
        q = self.quantize(x)
        codes = self.weight_codes(weight, path)
        numbers = (_zero_point(reader), stored.config.bits, list(values.shape[2:]))
        with self.program.graph.inserting_before(node):
            operands = (q, codes, *numbers, *geometry, arguments["groups"])
            sums = self.call(node, matte.quantized_conv2d.default, *operands)
            sums.meta["facts"] = self.program.facts(node)
            factor = self.constant(f"{path}.scale", scale.reshape(1, -1, 1, 1).clone())
            result = self.call(node, aten.mul.Tensor, sums, factor)
            if bias is not None:
                result = self.call(node, aten.add.Tensor, result, self.shift(path, bias))
        node.replace_all_uses_with(result)
        self.program.graph.erase_node(node)

    def lower_readers(self, call: fx.Node) -> None:
        """Let whoever still reads a fake quantizer read the same values without it."""
        if call.users:
            with self.program.graph.inserting_before(call):
                call.replace_all_uses_with(self.dequantized(call))
        self.program.graph.erase_node(call)

    def dequantized(self, call: fx.Node) -> fx.Node:
        module, source = self.program.module(call, FakeQuantize), _source(call)
        if source.op == "get_attr":
            return self.constant(f"{source.target}_quantized", module(self.program.tensor(source)).detach())
        operands = (self.quantize(call), module.affine(0)[0].item(), _zero_point(module))
        return self.call(call, matte.dequantize.default, *operands)

    def quantize(self, call: fx.Node) -> fx.Node:
        """The codes of what a fake quantizer reads, made once."""
        if call not in self.quantized:
            module = self.program.module(call, FakeQuantize)
            operands = (_source(call), module.affine(0)[0].item(), _zero_point(module), module.config.bits)
            with self.program.graph.inserting_before(call):
                self.quantized[call] = self.call(call, matte.quantize.default, *operands)
        return self.quantized[call]

    def weight_codes(self, call: fx.Node, path: str) -> fx.Node:
        """The stored codes of a weight, once however many convolutions read it."""
        if call not in self.codes:
            module = self.program.module(call, FakeQuantize)
            codes = module.codes(self.program.tensor(_source(call))).detach()
            packed = codes if module.config.bits > 4 else pack_int4(codes)
            self.codes[call] = self.constant(f"{path}.weight_codes", packed)
        return self.codes[call]

    def shift(self, path: str, bias: fx.Node) -> fx.Node:
        """The bias, shaped for images: a constant where it is one."""
        if bias.op == "get_attr":
            value = self.program.tensor(bias).detach().reshape(1, -1, 1, 1).clone()
            return self.constant(f"{path}.shift", value)
        return self.call(bias, aten.reshape.default, bias, [1, -1, 1, 1])

    def constant(self, name: str, value: Tensor) -> fx.Node:
        return self.program.constant(self.program.free_path(name), value)

    def call(self, origin: fx.Node, target: Any, *arguments: Any) -> fx.Node:
        """A call of an operator with the origin's place; shapes follow when the pass is done."""
        node = self.program.graph.call_function(target, arguments)
        node.meta["facts"] = self.program.facts(origin).but(precision=None)
        return node


def _zero_point(module: FakeQuantize) -> int:
    """The code of 0 once codes count from 0."""
    return int(module.zero_point) - module.config.low


def _pair(value: Any) -> list[int]:
    return [int(value[0]), int(value[-1])]
