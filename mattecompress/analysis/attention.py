"""Attention over the whole image in a program, found by what is computed:

    q, k, v = linear(x),   r = softmax(scale q k^T + q . Rh[h, kh] + q . Rw[w, kw]) v,   y = linear(r)

with h, w the place of a query on the grid and kh, kw that of a key; without the terms of R where a network has none.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, whose decomposed relative
positions these are.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn

from mattecompress.pipeline import expect
from mattecompress.program import Program, owner_of

aten = torch.ops.aten
unsqueeze = aten.unsqueeze.default
_VIEWS = {aten.reshape.default, aten._unsafe_view.default}
_MOVES = _VIEWS | {aten.permute.default, aten.transpose.int, aten.select.int}
_PRODUCTS = {aten.matmul.default, aten.bmm.default}


@dataclass(frozen=True)
class Attention:
    """One attention.

    source: x, (N,H,W,C), which the first linear layer `projection_in` reads.
    query, key, value: (N*heads, H*W, C/heads); the query is not scaled.
    vertical, horizontal: the terms of R, (N*heads, H, W, H) and (N*heads, H, W, W), or None.
    result: r, (N*heads, H*W, C/heads); `projection_out` is y, (N,H,W,C).
    """

    source: fx.Node
    projection_in: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    vertical: fx.Node | None
    horizontal: fx.Node | None
    result: fx.Node
    projection_out: fx.Node


def find_attention(program: Program) -> list[Attention]:
    """Every attention whose linear layers read whole images, in order; those of windows, cut by views, are left out."""
    found = (_match(program, softmax) for softmax in program.find(aten.softmax.int))
    return [one for one in found if one and one.source.target not in _MOVES]


def heads_of(program: Program, attention: Attention) -> int:
    """How many heads an attention has."""
    width = int(program.facts(attention.source).shape[-1])
    return width // int(program.facts(attention.query).shape[-1])


def grid_of(program: Program, attention: Attention) -> tuple[int, int]:
    """(H, W) of an attention of fixed size."""
    _, height, width, _ = program.facts(attention.source).shape
    return int(height), int(width)


def require_fixed_grid(program: Program, attention: Attention) -> None:
    """Raise `PreconditionError` while height or width of what an attention takes is open."""
    sizes = program.facts(attention.source).shape[1:]
    fixed = all(isinstance(size, int) for size in sizes)
    expect(fixed, "the program's size is open: fix it with -p 'set-resolution{height=512 width=512}'")


def attention_path(program: Program, attention: Attention) -> str:
    """Where the weights of an attention are: what the paths of its two linear layers share."""
    shared = _shared(program, attention.projection_in, attention.projection_out)
    beside = block_path(program, attention, "attention")
    return beside if beside == f"{shared}.attention".lstrip(".") else shared


def block_path(program: Program, attention: Attention, name: str) -> str:
    """A path in the block that an attention is part of: what the paths of its source and its layers share."""
    shared = _shared(program, attention.source, attention.projection_in)
    return f"{shared}.{name}".lstrip(".")


def _shared(program: Program, *nodes: fx.Node) -> str:
    parts = zip(*(program.facts(node).scope.split(".") for node in nodes), strict=False)
    same = takewhile(lambda names: len(set(names)) == 1, parts)
    return ".".join(names[0] for names in same)


def insert_module(
    program: Program, attention: Attention, path: str, module: nn.Module, *inputs: fx.Node
) -> fx.Node:
    """A call of a new module of tokens in front of an attention."""
    dtype = program.facts(attention.source).dtype
    program.add_module(path, module.to(dtype).train(program.graph_module.training))
    return _call(program, attention, path, inputs, attention.projection_in)


def replace_attention(program: Program, attention: Attention, module: nn.Module, *inputs: fx.Node) -> None:
    """Let a module stand for an attention, from its first linear layer to its last, at the same path."""
    path, dtype = attention_path(program, attention), program.facts(attention.source).dtype
    owner_of(program.graph_module, f"{path}.any", create=True)
    call = _call(program, attention, path, inputs, attention.projection_out)
    program.replace(attention.projection_out, call)
    program.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    program.add_module(path, module.to(dtype).train(program.graph_module.training))


def _call(
    program: Program, attention: Attention, path: str, inputs: tuple[fx.Node, ...], before: fx.Node
) -> fx.Node:
    with program.graph.inserting_before(before):
        node = program.graph.call_module(path, inputs)
    node.meta["facts"] = program.facts(attention.projection_out).but(scope=path)
    return node


def _match(program: Program, softmax: fx.Node) -> Attention | None:
    result = _only_user(softmax, through=_VIEWS)
    if result is None or result.target not in _PRODUCTS:
        return None
    value = result.args[1]
    product, *offsets = _summands(softmax.args[0])
    operands, terms = _operands(product), _terms(offsets)
    out = _only_user(result, through=_MOVES)
    if operands is None or terms is None or out is None or out.target is not aten.linear.default:
        return None
    query, key, scale = operands
    layer, *others = {_layer_before(node) for node in (query, key, value)}
    if layer is None or others:
        return None
    source = layer.args[0]
    assert isinstance(source, fx.Node) and isinstance(value, fx.Node)
    if len(program.facts(source).shape) != 4:
        return None
    return Attention(source, layer, query, key, value, scale, *terms, result, out)


def _only_user(node: fx.Node, through: Collection[Any]) -> fx.Node | None:
    """The one operation that reads a node, perhaps in another shape."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target not in through:
            return node
    return None


def _summands(node: object) -> list[fx.Node]:
    """What a sum adds up, the first summand first; views are seen through."""
    assert isinstance(node, fx.Node)
    if node.target in _VIEWS:
        return _summands(node.args[0])
    if node.target is aten.add.Tensor and isinstance(node.args[1], fx.Node) and not node.kwargs:
        return [*_summands(node.args[0]), node.args[1]]
    return [node]


def _operands(product: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """q, k and scale of `(q * scale) @ k^T`."""
    if product.target not in _PRODUCTS:
        return None
    query, turned = product.args
    assert isinstance(query, fx.Node) and isinstance(turned, fx.Node)
    if turned.target is not aten.transpose.int or turned.args[1:] not in ((-2, -1), (-1, -2), (1, 2)):
        return None
    key, scale = turned.args[0], 1.0
    if query.target is aten.mul.Tensor and isinstance(query.args[1], float):
        query, scale = query.args  # type: ignore[assignment]
    assert isinstance(key, fx.Node) and isinstance(query, fx.Node)
    return query, key, scale


def _layer_before(node: object) -> fx.Node | None:
    """The linear layer that a tensor is cut out of."""
    while isinstance(node, fx.Node) and node.target in _MOVES:
        node = node.args[0]
    linear = isinstance(node, fx.Node) and node.target is aten.linear.default
    return node if isinstance(node, fx.Node) and linear else None


def _terms(offsets: list[fx.Node]) -> tuple[fx.Node | None, fx.Node | None] | None:
    """The vertical and the horizontal term among the summands; None where there are others."""
    if not offsets:
        return None, None
    axes: dict[Any, Any] = {node.args[1]: node.args[0] for node in offsets if node.target is unsqueeze}
    axes = {axis % 5: term for axis, term in axes.items()}
    return (axes[4], axes[3]) if len(offsets) == 2 and set(axes) == {3, 4} else None
