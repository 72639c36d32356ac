"""What transformers are made of: linear layers, products, softmax, layer norm, attention, and tokens that are routed.

Attention is computed for some queries at a time, so that the map of all pairs is never in memory whole.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx
from tvm import te

from mattecompress import ops
from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute import rows
from mattecompress.backends.tvm.compute.mathematics import constant
from mattecompress.backends.tvm.compute.mathematics import product as times
from mattecompress.backends.tvm.compute.operands import (
    CONVOLUTION,
    INJECTIVE,
    OPAQUE,
    Expression,
    Index,
    View,
    compose,
    emit,
    in_memory,
    read_as_is,
    select,
)
from mattecompress.backends.tvm.compute.product import linear, product
from mattecompress.backends.tvm.compute.tokens import gathered, places_of, ranks_of, scattered, slots_of
from mattecompress.backends.tvm.importer.conversion import Conversion, Scope, refuse_computed
from mattecompress.program import Program

assert ops
aten, matte = torch.ops.aten, torch.ops.matte

QUERIES = 256


def _linear(scope: Scope, node: fx.Node) -> Conversion:
    x, weight_node, bias_node = (*node.args, None)[:3]
    weight, bias = scope.tensor(weight_node), scope.tensor(bias_node)
    assert weight is not None and isinstance(x, fx.Node)
    laid_out = weight.detach().T.reshape(1, 1, *weight.T.shape).contiguous().numpy()
    operands = [scope.memory(x), scope.constant(laid_out)]
    if bias is not None:
        operands.append(scope.constant(bias.detach().numpy()))

    def compute(tensor: te.Tensor, kernel: te.Tensor, offset: te.Tensor | None = None) -> te.Tensor:
        result = linear(tensor, kernel)
        if offset is None:
            return result
        return te.compute(result.shape, lambda *index: result(*index) + offset(index[-1]), name="bias")

    outputs, inputs = weight.shape
    return Conversion(compose(compute, operands), f"linear_{inputs}_{outputs}", CONVOLUTION, as_is=True)


def _product(scope: Scope, node: fx.Node) -> Conversion:
    x, weight = node.args
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    operands = [scope.as_is(x), scope.memory(weight)]
    return Conversion(compose(product, operands), "product", CONVOLUTION, as_is=True)


def _einsum(scope: Scope, node: fx.Node) -> Conversion:
    """Positions: `bhwc,hkc->bhwk` and `bhwc,wkc->bhwk`, with a constant laid out along k."""
    x, table = node.all_input_nodes
    by_row = str(node.args[0]).startswith("bhwc,h")
    tensor = scope.tensor(table)
    assert tensor is not None
    constant_view = scope.constant(tensor.detach().transpose(1, 2).contiguous().numpy())
    shape = scope.shape(node)

    def compute(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        c = te.reduce_axis((0, int(x.shape[3])), "c")

        def element(b: Index, h: Index, w: Index, k: Index) -> Expression:
            return te.sum(x(b, h, w, c) * table(h if by_row else w, c, k), axis=[c])

        return te.compute(shape, element, name="positions", attrs={"family": "product"})

    return Conversion(compose(compute, [scope.as_is(x), constant_view]), "positions", CONVOLUTION, as_is=True)


def _rows(function: Callable[[te.Tensor], te.Tensor]) -> Callable[[Scope, fx.Node], Conversion]:
    def convert(scope: Scope, node: fx.Node) -> Conversion:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        return Conversion(compose(function, [scope.memory(x)]), function.__name__, OPAQUE, as_is=True)

    return convert


def _layer_norm(scope: Scope, node: fx.Node) -> Conversion:
    given = arguments_of(node)
    affine = [name for name in ("weight", "bias") if given[name] is not None]

    def compute(x: te.Tensor, *tensors: te.Tensor) -> te.Tensor:
        return rows.layer_norm(x, given["eps"], **dict(zip(affine, tensors, strict=True)))

    operands = [scope.memory(given[name]) for name in ("input", *affine)]
    return Conversion(compose(compute, operands), "layer_norm", OPAQUE, as_is=True)


def _attention(scope: Scope, node: fx.Node) -> Conversion:
    query, _, _, mask = (*node.args, None)[:4]
    assert isinstance(query, fx.Node)
    given = node.kwargs.get("scale")
    scale = scope.shape(query)[-1] ** -0.5 if given is None else given
    bias = scope.as_is(mask) if isinstance(mask, fx.Node) else None
    return _attend(scope, node, bias, float(scale))  # type: ignore[arg-type]


def _attend_on_grid(scope: Scope, node: fx.Node) -> Conversion:
    _, _, _, vertical, horizontal, scale, _ = node.args
    bias = compose(_positions, [scope.as_is(vertical), scope.as_is(horizontal)])  # type: ignore[arg-type]
    return _attend(scope, node, bias, float(scale))  # type: ignore[arg-type]


def _positions(vertical: te.Tensor, horizontal: te.Tensor) -> te.Tensor:
    """What relative positions add to the logit of each pair, (B, H*W, H*W)."""
    images, height, width, _ = vertical.shape

    def element(image: Index, query: Index, key: Index) -> Expression:
        place = (image, query // width, query % width)
        return vertical(*place, key // width) + horizontal(*place, key % width)

    return te.compute((images, height * width, height * width), element, name="positions")


def _attend(scope: Scope, node: fx.Node, bias: View | None, scale: float) -> Conversion:
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    shape = scope.shape(node)
    keys = emit(scope.builder, "keys", INJECTIVE, _transposed(scope.as_is(key), scope.shape(key)))
    values = scope.memory(value)
    pieces = []
    for first in range(0, shape[-2], QUERIES):
        count = min(QUERIES, shape[-2] - first)
        logits = _logits(scope.as_is(query), in_memory(keys), bias, scale, first, count)
        logit_map = in_memory(emit(scope.builder, "logits", CONVOLUTION, logits))
        shares = in_memory(emit(scope.builder, "shares", OPAQUE, compose(rows.softmax, [logit_map])))
        mixed = emit(scope.builder, "mixed", CONVOLUTION, compose(product, [shares, values]))
        pieces.append(in_memory(mixed))
    if len(pieces) == 1:
        return Conversion(pieces[0], "attention", OPAQUE, done=True, as_is=True)
    return Conversion(compose(partial(_stacked, shape), pieces), "attention", INJECTIVE, as_is=True)


def _transposed(view: View, shape: tuple[int, ...]) -> View:
    *batch, length, width = shape

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(
            (*batch, width, length), lambda *index: x(*index[:-2], index[-1], index[-2]), name="keys"
        )

    return compose(compute, [view])


def _logits(query: View, keys: View, bias: View | None, scale: float, first: int, count: int) -> View:
    def compute(q: te.Tensor, k: te.Tensor, offset: te.Tensor | None = None) -> te.Tensor:
        *batch, _, width = q.shape
        some = te.compute(
            (*batch, count, width),
            lambda *index: q(*index[:-2], index[-2] + first, index[-1]),
            name="queries",
        )
        result = product(some, k)

        def element(*index: Index) -> Expression:
            value = times(result(*index), constant(scale))
            if offset is None:
                return value
            return value + read_as_is(offset, (*index[:-2], index[-2] + first, index[-1]))

        return te.compute(result.shape, element, name="scaled")

    return compose(compute, [query, keys] if bias is None else [query, keys, bias])


def _stacked(shape: tuple[int, ...], *pieces: te.Tensor) -> te.Tensor:
    """Pieces of queries below each other."""

    def element(*index: Index) -> Expression:
        row = index[-2]
        value = pieces[-1](*index[:-2], row - QUERIES * (len(pieces) - 1), index[-1])
        for number in range(len(pieces) - 2, -1, -1):
            piece = pieces[number](*index[:-2], row - QUERIES * number, index[-1])
            value = select(row < QUERIES * (number + 1), piece, value)
        return value

    return te.compute(shape, element, name="stacked")


def _channel_convolution(scope: Scope, node: fx.Node) -> Conversion:
    """`aten.conv1d` of one channel, written out tap by tap."""
    given = arguments_of(node)
    x, weight, (shift,), (dilation,) = (given[name] for name in ("input", "weight", "padding", "dilation"))
    taps = [float(tap) for tap in scope.program.tensor(weight).detach().flatten()]
    shape, length = scope.shape(node), scope.shape(x)[-1]

    def compute(x: te.Tensor) -> te.Tensor:
        def element(n: Index, c: Index, i: Index) -> Expression:
            total = constant(0.0)
            for number, tap in enumerate(taps):
                place = i + (number * dilation - shift)
                inside = te.all(place >= 0, place < length)
                total = total + times(select(inside, x(n, c, place), constant(0.0)), constant(tap))
            return total

        return te.compute(shape, element, name="taps")

    return Conversion(compose(compute, [scope.as_is(x)]), "conv1d", INJECTIVE, as_is=True)


def _choose(scope: Scope, node: fx.Node) -> Conversion:
    (margin,), limit = node.all_input_nodes, scope.shape(node)[1]
    source = scope.memory(margin)
    ranks = in_memory(emit(scope.builder, "ranks", OPAQUE, compose(ranks_of, [source])))
    places = compose(partial(places_of, limit=limit), [source, ranks])
    places_4d = in_memory(emit(scope.builder, "places", OPAQUE, places))
    view = compose(_flat, [places_4d])
    return Conversion(view, "choose_tokens", INJECTIVE)


def _gather(scope: Scope, node: fx.Node) -> Conversion:
    operands = [scope.memory(source) for source in node.args]  # type: ignore[arg-type]
    return Conversion(compose(gathered, operands), "gather_tokens", INJECTIVE)


def _scatter(scope: Scope, node: fx.Node) -> Conversion:
    rows_node, places_node, base = node.args
    places = scope.memory(places_node)  # type: ignore[arg-type]
    length = scope.shape(base)[1]  # type: ignore[arg-type]
    slots = emit(scope.builder, "slots", OPAQUE, compose(partial(slots_of, length=length), [places]))
    operands = [scope.memory(rows_node), in_memory(slots), scope.as_is(base)]  # type: ignore[arg-type]
    return Conversion(compose(scattered, operands), "scatter_tokens", INJECTIVE)


def _flat(x: te.Tensor) -> te.Tensor:
    return te.compute((x.shape[0], x.shape[3]), lambda n, k: x(n, 0, 0, k), name="flat")


CONVERTERS: dict[Any, Callable[[Scope, fx.Node], Conversion]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _product,
    aten.bmm.default: _product,
    aten.einsum.default: _einsum,
    aten.softmax.int: _rows(rows.softmax),
    aten.log_softmax.int: _rows(rows.log_softmax),
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: _attention,
    matte.attend_on_grid.default: _attend_on_grid,
    aten.conv1d.default: _channel_convolution,
    matte.choose_tokens.default: _choose,
    matte.gather_tokens.default: _gather,
    matte.scatter_tokens.default: _scatter,
}


def _refuse_rows(program: Program, node: fx.Node) -> str | None:
    axis, rank = int(node.args[1]), len(program.facts(node).shape)  # type: ignore[arg-type]
    return None if axis % rank == rank - 1 else f"a softmax must run over the last axis, not over {axis}"


def _refuse_norm(program: Program, node: fx.Node) -> str | None:
    sizes = list(node.args[1])  # type: ignore[arg-type]
    return None if len(sizes) == 1 else f"a layer norm must run over the last axis, not over {len(sizes)}"


def _refuse_product(program: Program, node: fx.Node) -> str | None:
    a, b = (program.facts(source).shape for source in node.args)  # type: ignore[arg-type]
    same = len(a) == len(b) and a[:-2] == b[:-2]
    return None if same else f"a product must be of equal batches, not of {a} and {b}"


def _refuse_einsum(program: Program, node: fx.Node) -> str | None:
    known = node.args[0] in ("bhwc,hkc->bhwk", "bhwc,wkc->bhwk")
    table = node.args[1][1]  # type: ignore[index]
    if known and isinstance(table, fx.Node) and table.op == "get_attr":
        return None
    return f"no kernel for the sum {node.args[0]}, only for relative positions"


def _refuse_attention(program: Program, node: fx.Node) -> str | None:
    given = arguments_of(node)
    mask = given["attn_mask"]
    boolean = isinstance(mask, fx.Node) and program.facts(mask).dtype is torch.bool
    if given["dropout_p"] or given["is_causal"] or boolean:
        return "attention is implemented without dropout, causal or boolean masks"
    batches = [program.facts(given[name]).shape[:-2] for name in ("query", "key", "value")]
    same = all(batch == batches[0] for batch in batches)
    return None if same else f"attention must be of equal batches and heads, not of {batches}"


def _refuse_convolution(program: Program, node: fx.Node) -> str | None:
    given = arguments_of(node)
    sizes, kernel = (program.facts(given[name]).shape for name in ("input", "weight"))
    one = len(sizes) == 3 and sizes[1] == kernel[0] == 1
    plain = one and given["bias"] is None and list(given["stride"]) == [1]
    if plain:
        return refuse_computed(program, node)
    return "a convolution of one dimension must be of one channel, without bias or stride"


REFUSALS: dict[Any, Callable[[Program, fx.Node], str | None]] = {
    aten.linear.default: refuse_computed,
    aten.softmax.int: _refuse_rows,
    aten.log_softmax.int: _refuse_rows,
    aten.layer_norm.default: _refuse_norm,
    aten.matmul.default: _refuse_product,
    aten.bmm.default: _refuse_product,
    aten.einsum.default: _refuse_einsum,
    aten.scaled_dot_product_attention.default: _refuse_attention,
    aten.conv1d.default: _refuse_convolution,
}
