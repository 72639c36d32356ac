"""Bringing an exported graph to the program's form: one value a node, no mutation, batch norms as modules."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.memory import is_view
from mattecompress.analysis.operands import arguments_of
from mattecompress.errors import UserError
from mattecompress.modules.batch_norm import BatchNorm2d, BatchNormConfig
from mattecompress.program import fetch_tensor, owner_of

aten = torch.ops.aten

_SAME = {aten.detach.default, aten.detach_.default, aten.alias.default}
"""What yields its operand itself, so that a change in place of one is a change of the other."""
_COPIES = {aten.lift_fresh_copy.default, aten.clone.default, aten.contiguous.default}
"""What keeps its operand's values, whatever becomes of the operand."""
_PLACES = ("device", "layout", "pin_memory")
"""Where and how an operation stores its result: a program leaves that to whoever runs it."""
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")


class NormalizationError(UserError):
    """The exported graph does something that a program cannot hold."""


def normalize_graph(module: fx.GraphModule) -> None:
    """Rewrite an exported graph in place.

    Copies go once nothing is changed in place any more; what a view needed of their order, a reshape does by itself.

    Raises:
        NormalizationError: a view, what a view was taken of, or a tensor of the network is changed in place, an
            operation yields several values of a kind that is not a split, or a batch norm has no running statistics.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if any(check in str(node.target) for check in _CHECKS):
            graph.erase_node(node)
        elif node.target in _SAME or _is_inactive_dropout(node) or _is_contiguous_already(node):
            _drop(graph, node)
        elif node.op == "call_function":
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _PLACES}
            _functionalize(graph, node)
            if node.target is aten.view.default:
                node.target = aten.reshape.default
            elif node.target is aten.conv2d.padding:
                _number_padding(graph, node)
    for node in list(graph.nodes):
        if node.target in _COPIES:
            _drop(graph, node)
        elif node.target is operator.getitem:
            _take_piece(graph, node)
    for node in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        _raise_batch_norm(module, node)
    _flatten_output(graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def _is_inactive_dropout(node: fx.Node) -> bool:
    return node.target is aten.dropout.default and node.args[2] is False


def _is_contiguous_already(node: fx.Node) -> bool:
    if node.target is not aten.contiguous.default:
        return False
    source: Any = node.args[0]
    return bool(source.meta["val"].is_contiguous())


def _drop(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _functionalize(graph: fx.Graph, node: fx.Node) -> None:
    """`relu_(x)` becomes `y = relu(x)`, and whoever reads x afterwards reads y."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    changed = node.args[0]
    pure = getattr(getattr(aten, packet.rstrip("_"), None), overload, None)
    if pure is None or not isinstance(changed, fx.Node):
        raise _refusal(node, "changes its operand in place")
    later, follows = set(), node.next
    while follows.op != "root":
        later.add(follows)
        follows = follows.next
    reason = _why_not_changed(node, changed, later)
    if reason:
        raise _refusal(node, reason)
    node.target = pure
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)


def _why_not_changed(node: fx.Node, changed: fx.Node, later: set[fx.Node]) -> str | None:
    """Why the new values are more than those of one node, read from here on."""
    if _is_view(changed):
        return "changes a view in place"
    if changed.op == "get_attr" and (node.users or later & changed.users.keys()):
        return f"changes {changed.target} of the network in place: make it a state, an input and an output"
    views = [changed]
    for view in views:
        views += [user for user in view.users if user is not node and user not in later and _is_view(user)]
    if any(later & view.users.keys() for view in views[1:]):
        return "changes in place what a view is read of afterwards"
    return None


def _is_view(node: fx.Node) -> bool:
    return node.target not in _COPIES and is_view(node)


def _refusal(node: fx.Node, reason: str) -> NormalizationError:
    return NormalizationError(f"cannot capture %{node.name}: {node.target} {reason}{_origin(node)}")


def _number_padding(graph: fx.Graph, node: fx.Node) -> None:
    """`conv2d(..., padding="same")` with its rows and columns in numbers, behind a `pad` where sides need several."""
    values = arguments_of(node)
    kernel = values["weight"].meta["val"].shape[2:]
    same = values["padding"] == "same"
    needed = [step * (taps - 1) * same for step, taps in zip(values["dilation"], kernel, strict=True)]
    values["padding"] = [total // 2 for total in needed]
    if any(total % 2 for total in needed):
        rows, columns = ((total // 2, total - total // 2) for total in needed)
        with graph.inserting_before(node):
            values["input"] = graph.call_function(aten.pad.default, (values["input"], [*columns, *rows]))
        values["input"].meta = dict(node.meta)
        values["padding"] = [0, 0]
    node.target, node.args, node.kwargs = aten.conv2d.default, tuple(values.values()), {}


def _origin(node: fx.Node) -> str:
    lines = str(node.meta.get("stack_trace", "")).strip().splitlines()
    return f"; {' '.join(line.strip() for line in lines[-2:])}" if lines else ""


def _take_piece(graph: fx.Graph, node: fx.Node) -> None:
    """`split(x, sizes)[i]` becomes one slice of x."""
    whole, index = node.args
    assert isinstance(whole, fx.Node) and isinstance(index, int)
    piece = _piece_of(whole, index)
    if piece is None:
        raise _refusal(whole, "yields several values")
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
    of_batch, momentum, eps, _ = node.args[5:]
    if of_batch or any(isinstance(reader, fx.Node) and reader.op != "get_attr" for reader in readers):
        raise _refusal(node, "has to be given by running statistics and stored factors")
    weight, bias, mean, variance = (_stored(module, reader) for reader in readers)
    assert isinstance(readers[2], fx.Node) and mean is not None and variance is not None
    path = str(readers[2].target).rpartition(".")[0] or node.name
    norm = BatchNorm2d(BatchNormConfig(mean.numel(), float(eps), float(momentum)))  # type: ignore[arg-type]
    norm.weight = nn.Parameter(torch.ones_like(mean) if weight is None else weight)
    norm.bias = nn.Parameter(torch.zeros_like(mean) if bias is None else bias)
    norm.running_mean, norm.running_var = mean, variance
    owner, leaf = owner_of(module, path)
    owner.add_module(leaf, norm.eval())
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (x,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _stored(module: fx.GraphModule, reader: Any) -> Tensor | None:
    return fetch_tensor(module, str(reader.target)).detach().clone() if reader is not None else None


def _flatten_output(graph: fx.Graph) -> None:
    output = graph.output_node()
    flat: list[fx.Node] = []
    fx.map_arg(output.args, flat.append)
    output.args = (tuple(flat),)
