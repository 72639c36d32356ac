"""Bringing an exported graph to the program's form: one value a node, no mutation, batch norms as modules."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.errors import UserError
from mattecompress.modules.batch_norm import BatchNorm2d, BatchNormConfig
from mattecompress.program import fetch_tensor, owner_of

aten = torch.ops.aten

_NO_OPERATIONS = {
    aten.lift_fresh_copy.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
}
_PLACES = ("device", "layout", "pin_memory")
"""Where and how an operation stores its result: a program leaves that to whoever runs it."""
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")
_VIEWS = (
    "slice",
    "select",
    "view",
    "reshape",
    "transpose",
    "permute",
    "expand",
    "squeeze",
    "unsqueeze",
    "getitem",
)


class NormalizationError(UserError):
    """The exported graph does something that a program cannot hold."""


def normalize_graph(module: fx.GraphModule) -> None:
    """Rewrite an exported graph in place.

    Copies that only change the order in memory go; what a view needed of that order, a reshape does by itself.

    Raises:
        NormalizationError: a view is changed in place, or an operation yields several values of a kind
            that is not a split.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if any(check in str(node.target) for check in _CHECKS):
            graph.erase_node(node)
        elif node.target in _NO_OPERATIONS or _is_inactive_dropout(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function":
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _PLACES}
            _functionalize(graph, node)
            if node.target is aten.view.default:
                node.target = aten.reshape.default
    for node in list(graph.nodes):
        if node.target is operator.getitem:
            _take_piece(graph, node)
    for node in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        _raise_batch_norm(module, node)
    _flatten_output(graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def _is_inactive_dropout(node: fx.Node) -> bool:
    return node.target is aten.dropout.default and node.args[2] is False


def _functionalize(graph: fx.Graph, node: fx.Node) -> None:
    """`relu_(x)` becomes `y = relu(x)`, and whoever reads x afterwards reads y."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    changed = node.args[0]
    pure = getattr(getattr(aten, packet.rstrip("_"), None), overload, None)
    if pure is None or not isinstance(changed, fx.Node) or _is_view(changed):
        raise NormalizationError(
            f"cannot capture %{node.name}: {node.target} changes a view in place{_origin(node)}"
        )
    node.target = pure
    later, follows = set(), node.next
    while follows.op != "root":
        later.add(follows)
        follows = follows.next
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)


def _is_view(node: fx.Node) -> bool:
    return any(view in str(node.target) for view in _VIEWS)


def _origin(node: fx.Node) -> str:
    lines = str(node.meta.get("stack_trace", "")).strip().splitlines()
    return f"; {' '.join(line.strip() for line in lines[-2:])}" if lines else ""


def _take_piece(graph: fx.Graph, node: fx.Node) -> None:
    """`split(x, sizes)[i]` becomes one slice of x."""
    whole, index = node.args
    assert isinstance(whole, fx.Node) and isinstance(index, int)
    piece = _piece_of(whole, index)
    if piece is None:
        raise NormalizationError(
            f"cannot capture %{whole.name}: {whole.target} yields several values{_origin(whole)}"
        )
    target, arguments = piece
    with graph.inserting_before(node):
        new = graph.call_function(target, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    if not whole.users:
        graph.erase_node(whole)


def _piece_of(whole: fx.Node, index: int) -> tuple[Any, tuple[Any, ...]] | None:
    source: Any = whole.args[0]
    arguments: tuple[Any, ...] = whole.args[1:]
    if whole.target is aten.unbind.int:
        return aten.select.int, (source, arguments[0] if arguments else 0, index)
    if whole.target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        return None
    rank = source.meta["val"].ndim
    axis = (arguments[1] if len(arguments) > 1 else whole.kwargs.get("dim", 0)) % rank
    sizes = [piece.shape[axis] for piece in whole.meta["val"]]
    start = sum(sizes[:index])
    return aten.slice.Tensor, (source, axis, int(start), int(start + sizes[index]))


def _raise_batch_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """`batch_norm(x, weight, bias, mean, var, ...)` becomes a call of a module that owns the five tensors."""
    x, *readers = node.args[:5]
    _, momentum, eps, _ = node.args[5:]
    assert all(isinstance(reader, fx.Node) for reader in readers)
    names = [str(reader.target) for reader in readers if isinstance(reader, fx.Node)]
    tensors = [fetch_tensor(module, name) for name in names]
    path = names[0].rpartition(".")[0]
    config = BatchNormConfig(tensors[0].numel(), float(eps), float(momentum))  # type: ignore[arg-type]
    owner, leaf = owner_of(module, path)
    owner.add_module(leaf, _batch_norm(config, tensors))
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (x,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _batch_norm(config: BatchNormConfig, tensors: list[Tensor]) -> BatchNorm2d:
    norm = BatchNorm2d(config)
    weight, bias, mean, variance = (tensor.detach().clone() for tensor in tensors)
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    norm.running_mean, norm.running_var = mean, variance
    return norm.eval()


def _flatten_output(graph: fx.Graph) -> None:
    output = graph.output_node()
    flat: list[fx.Node] = []
    fx.map_arg(output.args, flat.append)
    output.args = (tuple(flat),)
