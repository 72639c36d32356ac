"""Routing of tokens: how many attend is decided as the model runs, and what is not chosen is not computed."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.modules.token_refinement import TokenRefinement
from mattecompress.modules.token_router import TokenRouter

Rule = Callable[[Call], str]


def _router(call: Call) -> str:
    module = call.module
    assert isinstance(module, TokenRouter)
    mixed = _layers(call, "in_conv", module.in_conv, call.value("0"))
    half = module.config.channels // 2
    local, whole = (_channels(call, mixed, start, start + half) for start in (0, half))
    mean = _mean(call, whole) if "1" not in call.arguments else _mean_of_kept(call, whole)
    spread = call.emit("Expand", mean, call.emit("Shape", local))
    return _layers(call, "out_conv", module.out_conv, call.emit("Concat", local, spread, axis=-1))


def _mean(call: Call, value: str) -> str:
    return call.emit("ReduceMean", value, call.integers(1, 2))


def _mean_of_kept(call: Call, value: str) -> str:
    kept, axes = call.value("1"), call.integers(1, 2)
    count = call.emit("ReduceSum", kept, axes)
    most = call.emit("Max", count, call.writer.numbers(1.0, call.dtype))
    return call.emit("Div", call.emit("ReduceSum", call.emit("Mul", value, kept), axes), most)


def _refinement(call: Call) -> str:
    module = call.module
    assert isinstance(module, TokenRefinement)
    code = module.config.variant == "code"
    x = _layer(call, "fc1", module.fc1, call.value("0"))
    x = call.emit("Transpose", _gelu(call, x) if code else x, perm=[0, 3, 1, 2])
    x = call.emit("Transpose", _convolution(call, "dwconv", module.dwconv, x), perm=[0, 2, 3, 1])
    v = _layer(call, "fc2", module.fc2, _gelu(call, x) if code else x)
    mean = call.emit("ReduceMean", v, call.integers(1))
    line = call.emit("Transpose", call.emit("ReduceMean", mean, call.integers(2)), perm=[0, 1, 3, 2])
    line = call.emit("Squeeze", line, call.integers(3))
    gate = call.emit("Sigmoid", _convolution(call, "eca.conv", module.eca.conv, line))
    weighted = call.emit("Mul", v, call.emit("Unsqueeze", gate, call.integers(2)))
    return call.emit("Add", v, weighted) if code else weighted


def _routed_attention(call: Call) -> str:
    module = call.module
    assert isinstance(module, RoutedAttention)
    if module.training:
        raise RefusalError("routed attention in training mode: call eval() on the program's graph module")
    width = module.config.channels
    height, across = _grid(call)
    zero = call.writer.numbers(0.0, call.dtype)
    scores = [call.emit("Gather", call.value("2"), call.integers(way), axis=-1) for way in (0, 1)]
    margin = call.emit("Reshape", call.emit("Sub", *scores), call.integers(0, -1))
    places = _largest(call, module, margin)
    valid = call.emit("Greater", call.emit("GatherElements", margin, places, axis=1), zero)
    index = call.emit("Unsqueeze", places, call.integers(2))
    index = call.emit("Expand", index, call.integers(1, 1, width))
    tokens, refined = (
        call.emit("Reshape", call.value(name), call.integers(0, -1, width)) for name in ("0", "1")
    )
    attended = _attend(call, module, call.emit("GatherElements", tokens, index, axis=1), valid)
    kept = call.emit("GatherElements", refined, index, axis=1)
    written = call.emit("Where", call.emit("Unsqueeze", valid, call.integers(2)), attended, kept)
    result = call.emit("ScatterElements", refined, index, written, axis=1)
    return call.emit("Reshape", result, call.integers(-1, height, across, width))


def _largest(call: Call, module: RoutedAttention, margin: str) -> str:
    """Places of the largest margins: as many as the image of the batch with most has chosen, at least one."""
    height, width = _grid(call)
    room = call.integers(min(module.config.limit, height * width))
    if module.config.form == "dynamic":
        chosen = call.emit("Greater", margin, call.writer.numbers(0.0, call.dtype))
        counts = call.emit("ReduceSum", call.cast(chosen, torch.bool, torch.int64), call.integers(1))
        most = call.emit("ReduceMax", call.emit("Squeeze", counts, call.integers(1)), call.integers(0))
        room = call.emit("Max", call.emit("Min", most, room), call.integers(1))
    return call.emit_last("TopK", 2, margin, room, axis=1)


def _grid(call: Call) -> tuple[int, int]:
    _, height, width, _ = call.facts("0").shape
    if isinstance(height, str) or isinstance(width, str):
        raise RefusalError("routed attention needs a fixed resolution: run set-resolution first")
    return height, width


def _attend(call: Call, module: RoutedAttention, tokens: str, valid: str) -> str:
    heads, width = module.config.heads, module.config.channels
    parts = _layer(call, "qkv", module.qkv, tokens)
    parts = call.emit("Reshape", parts, call.integers(0, 0, 3, heads, width // heads))
    parts = call.emit("Transpose", parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (
        call.emit("Gather", parts, call.writer.numbers(part, torch.int64), axis=0) for part in range(3)
    )
    logits = call.emit("MatMul", q, call.emit("Transpose", k, perm=[0, 1, 3, 2]))
    logits = call.emit("Mul", logits, call.writer.numbers((width // heads) ** -0.5, call.dtype))
    mixed = call.emit("Softmax", call.emit("Add", logits, _mask(call, valid)), axis=-1)
    joined = call.emit("Transpose", call.emit("MatMul", mixed, v), perm=[0, 2, 1, 3])
    return _layer(call, "proj", module.proj, call.emit("Reshape", joined, call.integers(0, 0, width)))


def _mask(call: Call, valid: str) -> str:
    """0 where a token is valid or none of its image is, else minus infinity: (N,1,1,K)."""
    some = call.emit("ReduceMax", call.cast(valid, torch.bool, torch.int32), call.integers(1))
    none = call.emit("Equal", some, call.writer.numbers(0, torch.int32))
    ends = (call.writer.numbers(value, call.dtype) for value in (0.0, float("-inf")))
    mask = call.emit("Where", call.emit("Or", valid, none), *ends)
    return call.emit("Unsqueeze", mask, call.integers(1, 2))


def _layers(call: Call, path: str, layers: nn.Sequential, x: str) -> str:
    """Linear layers, layer norms, GELU and log-softmax, one after the other."""
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.GELU):
            x = _gelu(call, x)
        elif isinstance(layer, nn.LogSoftmax):
            x = call.emit("LogSoftmax", x, axis=-1)
        elif isinstance(layer, nn.LayerNorm):
            tensors = [
                _tensor(call, f"{path}.{number}.{name}", getattr(layer, name)) for name in ("weight", "bias")
            ]
            x = call.emit("LayerNormalization", x, *tensors, axis=-1, epsilon=layer.eps)
        else:
            assert isinstance(layer, nn.Linear)
            x = _layer(call, f"{path}.{number}", layer, x)
    return x


def _layer(call: Call, path: str, layer: nn.Linear, x: str) -> str:
    product = call.emit("MatMul", x, _tensor(call, f"{path}.weight", layer.weight.t()))
    return call.emit("Add", product, _tensor(call, f"{path}.bias", layer.bias))


def _convolution(call: Call, path: str, layer: nn.Conv1d | nn.Conv2d, x: str) -> str:
    tensors = [_tensor(call, f"{path}.weight", layer.weight)]
    if layer.bias is not None:
        tensors.append(_tensor(call, f"{path}.bias", layer.bias))
    edges = [int(size) for size in layer.padding]
    return call.emit("Conv", x, *tensors, pads=[*edges, *edges], group=layer.groups)


def _gelu(call: Call, x: str) -> str:
    return call.emit("Gelu", x)


def _channels(call: Call, x: str, start: int, end: int) -> str:
    return call.emit("Slice", x, call.integers(start), call.integers(end), call.integers(-1))


def _tensor(call: Call, path: str, value: torch.Tensor) -> str:
    return call.writer.tensor(f"{call.node.target}.{path}", value)


RULES: Mapping[str, Rule] = {
    "RoutedAttention": _routed_attention,
    "TokenRefinement": _refinement,
    "TokenRouter": _router,
}
"""By class name, as in `mattecompress.modules.MODULES`."""
