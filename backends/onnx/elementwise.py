"""ATen operations that treat every element alike."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mattecompress.analysis.operands import promoted_type
from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError

aten = torch.ops.aten

Rule = Callable[[Call], str]


def _unary(kind: str) -> Rule:
    def write(call: Call) -> str:
        return call.emit(kind, call.value("self", call.dtype))

    return write


def _binary(kind: str, left: str = "self", right: str = "other") -> Rule:
    def write(call: Call) -> str:
        a, b = _promoted(call, call[left], call[right])
        return call.emit(kind, a, b)

    return write


def _sum(kind: str) -> Rule:
    """self + alpha * other, or the difference."""

    def write(call: Call) -> str:
        a, b = _promoted(call, call["self"], call["other"])
        return call.emit(kind, a, _scaled(call, b))

    return write


def _reversed_difference(call: Call) -> str:
    """other - alpha * self."""
    a, b = _promoted(call, call["self"], call["other"])
    return call.emit("Sub", b, _scaled(call, a))


def _quotient(call: Call) -> str:
    """True division, also of integers; or division rounded down or towards 0."""
    mode = call.arguments.get("rounding_mode")
    a, b = call.value("self", call.dtype), call.value("other", call.dtype)
    if mode is None:
        return call.emit("Div", a, b)
    if not call.dtype.is_floating_point:
        raise RefusalError(f"integer division with rounding_mode={mode}")
    quotient = call.emit("Div", a, b)
    if mode == "floor":
        return call.emit("Floor", quotient)
    return call.emit("Mul", call.emit("Sign", quotient), call.emit("Floor", call.emit("Abs", quotient)))


def _unequal(call: Call) -> str:
    a, b = _promoted(call, call["self"], call["other"])
    return call.emit("Not", call.emit("Equal", a, b))


def _clamp(call: Call) -> str:
    """Numbers as bounds, either of which may be None."""
    low, high = ("" if call[name] is None else call.value(name, call.dtype) for name in ("min", "max"))
    return call.emit("Clip", call.value("self", call.dtype), low, high)


def _clamp_tensor(call: Call) -> str:
    value = call.value("self", call.dtype)
    for name, kind in (("min", "Max"), ("max", "Min")):
        if call[name] is not None:
            value = call.emit(kind, value, call.value(name, call.dtype))
    return value


def _bound(name: str) -> Rule:
    def write(call: Call) -> str:
        limit = call.value(name, call.dtype)
        value = call.value("self", call.dtype)
        return call.emit("Clip", value, *([limit] if name == "min" else ["", limit]))

    return write


def _hard_tanh(call: Call) -> str:
    low, high = call.value("min_val", call.dtype), call.value("max_val", call.dtype)
    return call.emit("Clip", call.value("self"), low, high)


def _silu(call: Call) -> str:
    value = call.value("self")
    return call.emit("Mul", value, call.emit("Sigmoid", value))


def _sigmoid(call: Call) -> str:
    """ONNX Runtime's `Sigmoid` is 0 below -18 and coarse above; 1 / (1 + exp(-x)) is torch's to the last place."""
    value = call.value("self", call.dtype)
    if not call.writer.spell_out:
        return call.emit("Sigmoid", value)
    grown = call.emit("Exp", call.emit("Neg", value))
    return call.emit("Reciprocal", call.emit("Add", grown, call.writer.numbers(1.0, call.dtype)))


def _hard_sigmoid(call: Call) -> str:
    """clamp(x + 3, 0, 6) / 6 is torch's bit for bit."""
    if not call.writer.spell_out:
        return call.emit("HardSigmoid", call.value("self"), alpha=1 / 6, beta=0.5)
    return call.emit("Div", _shifted_clamp(call), call.writer.numbers(6.0, call.dtype))


def _hard_swish(call: Call) -> str:
    """x * clamp(x + 3, 0, 6) / 6 is torch's bit for bit."""
    if not call.writer.spell_out:
        return call.emit("HardSwish", call.value("self"))
    product = call.emit("Mul", call.value("self"), _shifted_clamp(call))
    return call.emit("Div", product, call.writer.numbers(6.0, call.dtype))


def _shifted_clamp(call: Call) -> str:
    zero, three, six = (call.writer.numbers(number, call.dtype) for number in (0.0, 3.0, 6.0))
    return call.emit("Clip", call.emit("Add", call.value("self"), three), zero, six)


def _inverse_root(call: Call) -> str:
    return call.emit("Reciprocal", call.emit("Sqrt", call.value("self", call.dtype)))


def _gelu(call: Call) -> str:
    return call.emit("Gelu", call.value("self"), approximate=call["approximate"])


def _leaky_relu(call: Call) -> str:
    return call.emit("LeakyRelu", call.value("self"), alpha=float(call.number("negative_slope")))


def _prelu(call: Call) -> str:
    """The slopes lie along axis 1."""
    shape = [-1] + [1] * (call.rank("self") - 2)
    slope = call.emit("Reshape", call.value("weight"), call.integers(*shape))
    return call.emit("PRelu", call.value("self"), slope)


def _where(call: Call) -> str:
    return call.emit(
        "Where", call.value("condition"), call.value("self", call.dtype), call.value("other", call.dtype)
    )


def _masked_fill(call: Call) -> str:
    return call.emit(
        "Where", call.value("mask"), call.value("value", call.dtype), call.value("self", call.dtype)
    )


def _cast(call: Call) -> str:
    return call.value("self", call.dtype)


def _logical(kind: str) -> Rule:
    def write(call: Call) -> str:
        return call.emit(kind, call.value("self", torch.bool), call.value("other", torch.bool))

    return write


def _invert(call: Call) -> str:
    if call.dtype is not torch.bool:
        raise RefusalError("bitwise_not of integers")
    return call.emit("Not", call.value("self"))


def _promoted(call: Call, left: Any, right: Any) -> tuple[str, str]:
    """Both operands in the element type that torch computes in."""
    dtype = promoted_type(left, right)
    return call.operand(left, dtype), call.operand(right, dtype)


def _scaled(call: Call, value: str) -> str:
    alpha = call.arguments.get("alpha", 1)
    if alpha == 1:
        return value
    return call.emit("Mul", value, call.writer.numbers(alpha, call.dtype))


RULES: Mapping[Any, Rule] = {
    aten.relu.default: _unary("Relu"),
    aten.relu6.default: lambda call: call.emit(
        "Clip", call.value("self"), *(call.writer.numbers(bound, call.dtype) for bound in (0.0, 6.0))
    ),
    aten.sigmoid.default: _sigmoid,
    aten.tanh.default: _unary("Tanh"),
    aten.exp.default: _unary("Exp"),
    aten.log.default: _unary("Log"),
    aten.sqrt.default: _unary("Sqrt"),
    aten.rsqrt.default: _inverse_root,
    aten.reciprocal.default: _unary("Reciprocal"),
    aten.erf.default: _unary("Erf"),
    aten.sin.default: _unary("Sin"),
    aten.cos.default: _unary("Cos"),
    aten.neg.default: _unary("Neg"),
    aten.abs.default: _unary("Abs"),
    aten.sign.default: _unary("Sign"),
    aten.floor.default: _unary("Floor"),
    aten.ceil.default: _unary("Ceil"),
    aten.round.default: _unary("Round"),
    aten.hardswish.default: _hard_swish,
    aten.hardsigmoid.default: _hard_sigmoid,
    aten.hardtanh.default: _hard_tanh,
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    aten.prelu.default: _prelu,
    aten.logical_not.default: lambda call: call.emit("Not", call.value("self", torch.bool)),
    aten.logical_and.default: _logical("And"),
    aten.logical_or.default: _logical("Or"),
    aten.bitwise_not.default: _invert,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp_tensor,
    aten.clamp_min.default: _bound("min"),
    aten.clamp_max.default: _bound("max"),
    aten.where.self: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.add.Tensor: _sum("Add"),
    aten.add.Scalar: _sum("Add"),
    aten.sub.Tensor: _sum("Sub"),
    aten.sub.Scalar: _sum("Sub"),
    aten.rsub.Scalar: _reversed_difference,
    aten.rsub.Tensor: _reversed_difference,
    aten.mul.Tensor: _binary("Mul"),
    aten.mul.Scalar: _binary("Mul"),
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.div.Tensor_mode: _quotient,
    aten.pow.Tensor_Scalar: _binary("Pow", right="exponent"),
    aten.pow.Tensor_Tensor: _binary("Pow", right="exponent"),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    aten.eq.Tensor: _binary("Equal"),
    aten.eq.Scalar: _binary("Equal"),
    aten.ne.Tensor: _unequal,
    aten.ne.Scalar: _unequal,
    aten.lt.Tensor: _binary("Less"),
    aten.lt.Scalar: _binary("Less"),
    aten.le.Tensor: _binary("LessOrEqual"),
    aten.le.Scalar: _binary("LessOrEqual"),
    aten.gt.Tensor: _binary("Greater"),
    aten.gt.Scalar: _binary("Greater"),
    aten.ge.Tensor: _binary("GreaterOrEqual"),
    aten.ge.Scalar: _binary("GreaterOrEqual"),
    aten.to.dtype: _cast,
    aten._to_copy.default: _cast,
}
