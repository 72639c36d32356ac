"""Attention: softmax(scale query key^T + bias) value, of all queries or of some rows of a grid after the other."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.ops.attention import row_tiles

aten, matte = torch.ops.aten, torch.ops.matte

Rule = Callable[[Call], str]


def _attention(call: Call) -> str:
    if call["is_causal"] or call["enable_gqa"] or call["dropout_p"]:
        raise RefusalError("attention that is causal, grouped or with dropout")
    width = call.sizes("query", "attention")[-1] if call["scale"] is None else 1
    scale = 1 / math.sqrt(width) if call["scale"] is None else call.number("scale")
    bias = None if call["attn_mask"] is None else _bias(call)
    return _attend(call, call.value("query"), _turned(call), bias, scale)


def _bias(call: Call) -> str:
    if call.facts("attn_mask").dtype is not torch.bool:
        return call.value("attn_mask", call.dtype)
    kept, dropped = (call.writer.numbers(number, call.dtype) for number in (0.0, -math.inf))
    return call.emit("Where", call.value("attn_mask"), kept, dropped)


def _attend_on_grid(call: Call) -> str:
    """The map of one tile at a time is in memory."""
    _, height, width, _ = call.facts("vertical").shape
    if isinstance(height, str) or isinstance(width, str):
        raise RefusalError("attention on a grid needs a fixed resolution: run set-resolution first")
    keys, pieces = _turned(call), []
    for rows in row_tiles(height, width, call["queries"]):
        query, vertical, horizontal = (
            call.emit(
                "Slice",
                call.value(name),
                call.integers(rows.start * size),
                call.integers(rows.stop * size),
                call.integers(1),
            )
            for name, size in (("query", width), ("vertical", 1), ("horizontal", 1))
        )
        terms = (
            call.emit("Unsqueeze", term, call.integers(axis))
            for term, axis in ((vertical, 4), (horizontal, 3))
        )
        flat = call.integers(0, (rows.stop - rows.start) * width, height * width)
        bias = call.emit("Reshape", call.emit("Add", *terms), flat)
        pieces.append(_attend(call, query, keys, bias, call["scale"]))
    return pieces[0] if len(pieces) == 1 else call.emit("Concat", *pieces, axis=1)


def _turned(call: Call) -> str:
    rank = call.rank("key")
    return call.emit("Transpose", call.value("key"), perm=[*range(rank - 2), rank - 1, rank - 2])


def _attend(call: Call, query: str, keys: str, bias: str | None, scale: float) -> str:
    scores = call.emit("Mul", call.emit("MatMul", query, keys), call.writer.numbers(scale, call.dtype))
    if bias is not None:
        scores = call.emit("Add", scores, bias)
    return call.emit("MatMul", call.emit("Softmax", scores, axis=-1), call.value("value"))


RULES: Mapping[Any, Rule] = {
    aten.scaled_dot_product_attention.default: _attention,
    matte.attend_on_grid.default: _attend_on_grid,
}
