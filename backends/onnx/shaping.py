"""ATen operations that move, cut and join without arithmetic, and integer arithmetic on sizes."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import END, RefusalError

aten = torch.ops.aten

Rule = Callable[[Call], str]


def _same(call: Call) -> str:
    return call.value("self")


def _dropout(call: Call) -> str:
    if call["train"]:
        raise RefusalError("dropout in training mode")
    return call.value("input")


def _concatenate(call: Call) -> str:
    tensors = call["tensors"]
    parts = [call.operand(tensor, call.dtype) for tensor in tensors]
    return call.emit("Concat", *parts, axis=call["dim"] % call.rank(tensors[0]))


def _stack(call: Call) -> str:
    axis = call["dim"] % call.rank(call.node)
    parts = [
        call.emit("Unsqueeze", call.operand(tensor, call.dtype), call.integers(axis))
        for tensor in call["tensors"]
    ]
    return call.emit("Concat", *parts, axis=axis)


def _slice(call: Call) -> str:
    start = 0 if call["start"] is None else call["start"]
    end = END if call["end"] is None else call["end"]
    if (start, end, call["step"]) == (0, END, 1):
        return call.value("self")
    bounds = (call.size_vector([start]), call.size_vector([end]), call.integers(call.axis("self")))
    return call.emit("Slice", call.value("self"), *bounds, call.integers(call["step"]))


def _select(call: Call) -> str:
    index = call.operand(call["index"], torch.int64)
    axis = call.axis("self")
    if isinstance(call["index"], fx.Node):
        index = call.emit("Squeeze", index)
    return call.emit("Gather", call.value("self"), index, axis=axis)


def _reshape(name: str) -> Rule:
    def write(call: Call) -> str:
        return call.emit("Reshape", call.value("self"), call.size_vector(call[name]))

    return write


def _flatten(call: Call) -> str:
    rank = call.rank("self")
    first, last = call["start_dim"] % rank, call["end_dim"] % rank
    kept = [0] * first
    tail = list(call.facts("self").shape[last + 1 :])
    if any(isinstance(size, str) for size in tail):
        raise RefusalError(
            "flatten before a symbolic axis needs a fixed resolution: run set-resolution first"
        )
    return call.emit("Reshape", call.value("self"), call.integers(*kept, -1, *(int(size) for size in tail)))


def _permute(call: Call) -> str:
    rank = call.rank("self")
    return call.emit("Transpose", call.value("self"), perm=[axis % rank for axis in call["dims"]])


def _transpose(call: Call) -> str:
    order = list(range(call.rank("self")))
    first, second = call.axis("self", "dim0"), call.axis("self", "dim1")
    order[first], order[second] = second, first
    return call.emit("Transpose", call.value("self"), perm=order)


def _matrix_transpose(call: Call) -> str:
    return call.emit("Transpose", call.value("self"), perm=list(reversed(range(call.rank("self")))))


def _unsqueeze(call: Call) -> str:
    return call.emit("Unsqueeze", call.value("self"), call.integers(call["dim"] % call.rank(call.node)))


def _squeeze(call: Call) -> str:
    """Only axes of size 1 go."""
    wanted = call["dim"] if isinstance(call["dim"], Sequence) else [call["dim"]]
    shape = call.facts("self").shape
    axes = sorted({axis % len(shape) for axis in wanted if shape[axis] == 1})
    return call.emit("Squeeze", call.value("self"), call.integers(*axes)) if axes else call.value("self")


def _expand(call: Call) -> str:
    sizes = [1 if size == -1 else size for size in call["size"]]
    return call.emit("Expand", call.value("self"), call.size_vector(sizes))


def _like_other(kind: str) -> Rule:
    """`Reshape` or `Expand` to the shape of another tensor."""
    return lambda call: call.emit(kind, call.value("self"), call.emit("Shape", call.value("other")))


def _repeat(call: Call) -> str:
    grown = len(call["repeats"]) - call.rank("self")
    value = call.value("self")
    if grown:
        value = call.emit("Unsqueeze", value, call.integers(*range(grown)))
    return call.emit("Tile", value, call.size_vector(call["repeats"]))


def _pad_constant(call: Call) -> str:
    return _pad(call, "constant", call["value"])


def _pad_any(call: Call) -> str:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if call["mode"] not in modes:
        raise RefusalError(f"padding mode {call['mode']}")
    return _pad(call, modes[call["mode"]], call["value"] or 0)


def _pad(call: Call, mode: str, value: float) -> str:
    """Torch lists (before, after) from the last axis on; ONNX lists all befores, then all afters."""
    pairs = list(zip(call["pad"][0::2], call["pad"][1::2], strict=True))[::-1]
    rank = call.rank("self")
    axes = range(rank - len(pairs), rank)
    amounts = call.size_vector([before for before, _ in pairs] + [after for _, after in pairs])
    fill = call.writer.numbers(value, call.dtype) if mode == "constant" else ""
    return call.emit("Pad", call.value("self"), amounts, fill, call.integers(*axes), mode=mode)


def _index(call: Call) -> str:
    """One index tensor, on any axis, the other axes taken whole."""
    used = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    if len(used) != 1 or call.facts(used[0][1]).dtype is torch.bool:
        raise RefusalError("indexing by several tensors or by a mask")
    axis, index = used[0]
    return call.emit("Gather", call.value("self"), call.operand(index), axis=axis)


def _index_select(call: Call) -> str:
    return call.emit("Gather", call.value("self"), call.value("index"), axis=call.axis("self"))


def _gather(call: Call) -> str:
    return call.emit("GatherElements", call.value("self"), call.value("index"), axis=call.axis("self"))


def _sort_places(call: Call) -> str:
    """Equal values keep their order, in ONNX always and in torch on request."""
    if not call.arguments.get("stable"):
        raise RefusalError("argsort that is not stable")
    axis = call.axis("self")
    count = call.emit("Shape", call.value("self"), start=axis, end=axis + 1)
    return call.emit_last("TopK", 2, call.value("self"), count, axis=axis, largest=int(call["descending"]))


def _scatter(reduction: str) -> Rule:
    def write(call: Call) -> str:
        inputs = (call.value("self"), call.value("index"), call.value("src"))
        return call.emit("ScatterElements", *inputs, axis=call.axis("self"), reduction=reduction)

    return write


def _largest_place(call: Call) -> str:
    if call["dim"] is None:
        raise RefusalError("argmax over all axes")
    return call.emit("ArgMax", call.value("self"), axis=call.axis("self"), keepdims=int(call["keepdim"]))


def _pixel_shuffle(call: Call) -> str:
    return call.emit("DepthToSpace", call.value("self"), blocksize=call["upscale_factor"], mode="CRD")


def _filled(value: Callable[[Call], Any]) -> Rule:
    """A tensor of one number: expanded from a scalar."""

    def write(call: Call) -> str:
        scalar = call.writer.numbers(value(call), call.dtype)
        if "size" not in call.arguments:
            return call.emit("Expand", scalar, call.emit("Shape", call.value("self")))
        return call.emit("Expand", scalar, call.size_vector(call["size"]))

    return write


def _range(call: Call) -> str:
    bounds = [call.arguments.get("start", 0), call["end"], call.arguments.get("step", 1)]
    scalars = [_range_bound(call, bound) for bound in bounds]
    return call.emit("Range", *scalars)


def _range_bound(call: Call, bound: Any) -> str:
    value = call.operand(bound, call.dtype)
    return call.emit("Squeeze", value) if isinstance(bound, fx.Node) else value


def _size(call: Call) -> str:
    """An integer node becomes an int64 vector of one element, ready for `Concat` into a shape."""
    axis = call.axis("self")
    return call.emit("Shape", call.value("self"), start=axis, end=axis + 1)


def _integers(kind: str) -> Rule:
    def write(call: Call) -> str:
        return call.emit(kind, *(call.size_vector([value]) for value in call.node.args))

    return write


def _floor_divide(call: Call) -> str:
    """Rounded down, as Python does; ONNX's `Div` rounds towards 0, and `Mod` has the divisor's sign."""
    a, b = (call.size_vector([value]) for value in call.node.args)
    return call.emit("Div", call.emit("Sub", a, call.emit("Mod", a, b)), b)


RULES: Mapping[Any, Rule] = {
    aten.cat.default: _concatenate,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.view.default: _reshape("size"),
    aten._unsafe_view.default: _reshape("size"),
    aten.reshape.default: _reshape("shape"),
    aten.view_as.default: _like_other("Reshape"),
    aten.flatten.using_ints: _flatten,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _matrix_transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.expand.default: _expand,
    aten.expand_as.default: _like_other("Expand"),
    aten.repeat.default: _repeat,
    aten.constant_pad_nd.default: _pad_constant,
    aten.pad.default: _pad_any,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.gather.default: _gather,
    aten.scatter.src: _scatter("none"),
    aten.scatter_add.default: _scatter("add"),
    aten.argsort.stable: _sort_places,
    aten.argmax.default: _largest_place,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.dropout.default: _dropout,
    aten.full.default: _filled(lambda call: call.number("fill_value")),
    aten.full_like.default: _filled(lambda call: call.number("fill_value")),
    aten.zeros.default: _filled(lambda call: 0),
    aten.zeros_like.default: _filled(lambda call: 0),
    aten.ones.default: _filled(lambda call: 1),
    aten.ones_like.default: _filled(lambda call: 1),
    aten.arange.default: _range,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.sym_size.int: _size,
    operator.add: _integers("Add"),
    operator.sub: _integers("Sub"),
    operator.mul: _integers("Mul"),
    operator.mod: _integers("Mod"),
    operator.neg: _integers("Neg"),
    operator.floordiv: _floor_divide,
}
