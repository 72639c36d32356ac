"""Elementwise operations, each rounded as its reference rounds it; those of float16 compute in float16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import te, tirx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.analysis.operands import promoted_type
from mattecompress.backends.tvm.compute import mathematics
from mattecompress.backends.tvm.compute.mathematics import (
    clamp,
    constant,
    dtype_of,
    in_single,
    like,
    product,
    quotient,
)
from mattecompress.backends.tvm.compute.operands import (
    BROADCAST,
    ELEMENTWISE,
    INJECTIVE,
    Expression,
    View,
    compose,
    elementwise,
    stored,
)
from mattecompress.backends.tvm.importer.conversion import (
    DTYPE_NAMES,
    IMAGE_RANK,
    Conversion,
    Scope,
    refuse_computed,
)
from mattecompress.program import Program

aten, matte = torch.ops.aten, torch.ops.matte


def _add(a: Expression, b: Expression, alpha: float = 1) -> Expression:
    return a + (b if alpha == 1 else product(like(b, alpha), b))


def _subtract(a: Expression, b: Expression, alpha: float = 1) -> Expression:
    return a - (b if alpha == 1 else product(like(b, alpha), b))


def _subtract_from(a: Expression, b: Expression, alpha: float = 1) -> Expression:
    return _subtract(b, a, alpha)


def _leaky_relu(x: Expression, slope: float | Expression = 0.01) -> Expression:
    slope = like(x, slope) if isinstance(slope, (int, float)) else slope
    return tirx.Select(x > like(x, 0.0), x, product(x, slope))


def _hardtanh(x: Expression, low: float = -1.0, high: float = 1.0) -> Expression:
    return clamp(x, low, high)


def _clamp(x: Expression, low: float | None = None, high: float | None = None) -> Expression:
    return clamp(x, low, high)


def _choose(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    return tirx.Select(condition, then, otherwise)


FUNCTIONS: dict[Any, Callable[..., Expression]] = {
    aten.relu.default: mathematics.relu,
    aten.hardswish.default: mathematics.hardswish,
    aten.hardsigmoid.default: mathematics.hardsigmoid,
    aten.sigmoid.default: in_single(mathematics.sigmoid),
    aten.tanh.default: in_single(mathematics.tanh),
    aten.exp.default: in_single(mathematics.exp),
    matte.sigmoid.default: mathematics.sigmoid,
    matte.tanh.default: mathematics.tanh,
    aten.neg.default: lambda x: like(x, 0.0) - x,
    aten.gelu.default: in_single(mathematics.gelu),
    aten.sqrt.default: tirx.sqrt,
    aten.pow.Tensor_Scalar: lambda x, exponent: product(x, x),
    aten.abs.default: lambda x: tirx.max(x, like(x, 0.0) - x),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda x, high: clamp(x, None, high),
    aten.hardtanh.default: _hardtanh,
    aten.relu6.default: lambda x: clamp(x, 0.0, 6.0),
    aten.leaky_relu.default: _leaky_relu,
    aten._prelu_kernel.default: _leaky_relu,
    aten.prelu.default: _leaky_relu,
    aten.where.self: _choose,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.rsub.Scalar: _subtract_from,
    aten.mul.Tensor: product,
    aten.div.Tensor: quotient,
    aten.maximum.default: tirx.max,
    aten.minimum.default: tirx.min,
}
COMPARISONS: dict[Any, Callable[[Expression, Expression], Expression]] = {
    aten.ge.Scalar: lambda a, b: a >= b,
    aten.ge.Tensor: lambda a, b: a >= b,
    aten.gt.Scalar: lambda a, b: a > b,
    aten.gt.Tensor: lambda a, b: a > b,
}
_BINARY = {
    *COMPARISONS,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
}


def convert(scope: Scope, node: fx.Node) -> Conversion:
    """Any node of `FUNCTIONS`: tensors broadcast and take the type of the result, numbers become constants."""
    as_is = scope.are_tokens(node.all_input_nodes)
    view = _compute(scope, node, FUNCTIONS[node.target], scope.dtype(node), as_is)
    name = str(node.target).split(".")[1].strip("_")
    return Conversion(view, name, _pattern(scope, node), as_is=as_is)


def compare(scope: Scope, node: fx.Node) -> Conversion:
    """Any node of `COMPARISONS`: whoever reads the truth values computes them."""
    as_is, dtype = scope.are_tokens(node.all_input_nodes), DTYPE_NAMES[promoted_type(*node.args)]
    view = _compute(scope, node, COMPARISONS[node.target], dtype, as_is)
    return Conversion(view, "compare", BROADCAST, done=True, as_is=as_is)


def _compute(
    scope: Scope, node: fx.Node, function: Callable[..., Expression], dtype: str, as_is: bool
) -> View:
    """The function of the node's arguments, all of `dtype` but truth values."""
    shape = scope.shape(node)
    arguments = [_operand(scope, node, position, dtype, as_is) for position in range(len(node.args))]
    tensors = [argument for argument in arguments if isinstance(argument, View)]

    def compute(*sources: Any) -> Any:
        def element(*elements: Expression) -> Expression:
            remaining = iter(elements)
            values = [_cast(next(remaining), dtype) if isinstance(a, View) else a for a in arguments]
            return function(*values, **node.kwargs)

        return elementwise("elementwise", shape, element, *sources, as_is=as_is)

    return compose(compute, tensors)


def _cast(value: Expression, dtype: str) -> Expression:
    return value if dtype_of(value) == "bool" else value.astype(dtype)


def _pattern(scope: Scope, node: fx.Node) -> int:
    """Elementwise, so that a convolution takes it as epilogue, if all activations have the shape of the result.

    Gathered tiles count as such: they are no convolution's result. Injective, so that nothing takes it, where tokens
    are moved on their way into it.
    """
    gathered = matte.gather_tiles.default
    sources = [
        source for source in node.all_input_nodes if source.op != "get_attr" and source.target is not gathered
    ]
    if any(_is_moved(scope, source) for source in sources):
        return INJECTIVE
    same = all(scope.shape(source) == scope.shape(node) for source in sources)
    return ELEMENTWISE if same else BROADCAST


def _is_moved(scope: Scope, source: fx.Node) -> bool:
    tokens = source in scope.kept or len(scope.shape(source)) != IMAGE_RANK
    return tokens and not scope.as_is(source).is_stored


def _operand(scope: Scope, node: fx.Node, position: int, dtype: str, as_is: bool) -> Any:
    argument = node.args[position]
    if isinstance(argument, fx.Node):
        tensor = scope.tensor(argument) if argument.op == "get_attr" else None
        if tensor is not None and tensor.numel() == 1:
            return constant(tensor.item(), dtype)
        if tensor is not None and node.target is aten.prelu.default:
            return scope.constant(stored(tensor.reshape(-1, *(1,) * (len(scope.shape(node)) - 2))))
        return (scope.as_is if as_is else scope.view)(argument, len(scope.shape(node)))
    if node.target in _BINARY and position < 2:
        return constant(float(argument), dtype)  # type: ignore[arg-type]
    return argument


def cast(scope: Scope, node: fx.Node) -> Conversion:
    """`aten.to.dtype` to a floating-point type."""
    source, dtype = node.args[0], scope.dtype(node)
    assert isinstance(source, fx.Node)
    as_is = scope.are_tokens([source])

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *index: x(*index).astype(dtype), name="cast")

    view = scope.as_is(source) if as_is else scope.view(source)
    return Conversion(compose(compute, [view]), "cast", ELEMENTWISE, as_is=as_is)


CONVERTERS = {**dict.fromkeys(FUNCTIONS, convert), **dict.fromkeys(COMPARISONS, compare), aten.to.dtype: cast}


def _refuse_power(program: Program, node: fx.Node) -> str | None:
    exponent = node.args[1]
    return None if exponent == 2 else f"powers are implemented for exponent 2, not {exponent}"


def _refuse_gelu(program: Program, node: fx.Node) -> str | None:
    approximate = node.kwargs.get("approximate", "none")
    return (
        None if approximate == "none" else f"gelu is implemented exactly, not approximated by {approximate}"
    )


REFUSALS: dict[Any, Callable[[Program, fx.Node], str | None]] = {
    aten.pow.Tensor_Scalar: _refuse_power,
    aten.gelu.default: _refuse_gelu,
    aten.prelu.default: refuse_computed,
}
