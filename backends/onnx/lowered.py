"""The lowered operations `matte::`, as calls of the local functions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.backends.onnx.spatial import pads, resize
from mattecompress.ops.integer import unpack_weight
from mattecompress.ops.resize import taps

matte = torch.ops.matte

Rule = Callable[[Call], str]


def _geometry(call: Call) -> dict[str, Any]:
    return {
        "strides": list(call["stride"]),
        "pads": pads(call["padding"]),
        "dilations": list(call["dilation"]),
    }


def _pack_signs(call: Call) -> str:
    threshold = call["threshold"]
    limit = call.writer.numbers((0.0,), torch.float32) if threshold is None else call.value("threshold")
    return call.emit_function("pack_signs", call.value("x"), limit, group=call["groups"], word=call["word"])


def _pack_units(call: Call) -> str:
    return call.emit_function("pack_units", call.value("x"), group=call["groups"], word=call["word"])


def _pack_plane(call: Call) -> str:
    return call.emit_function(
        "pack_plane", call.value("x"), plane=call["plane"], group=call["groups"], word=call["word"]
    )


def _binary_convolution(call: Call) -> str:
    return call.emit_function(
        "binary_conv2d",
        call.value("bits"),
        call.value("weight"),
        channels=call["channels"],
        **_geometry(call),
        group=call["groups"],
        encoding=call["encoding"],
        border=call["border"],
    )


def _binary_depthwise_convolution(call: Call) -> str:
    return call.emit_function(
        "binary_depthwise_conv2d",
        call.value("bits"),
        call.value("weight"),
        channels=call["channels"],
        **_geometry(call),
        encoding=call["encoding"],
        border=call["border"],
    )


def _zero_point(call: Call) -> int:
    if not 0 <= call["zero_point"] <= 255:
        raise RefusalError(f"zero_point {call['zero_point']} is no uint8 code")
    return int(call["zero_point"])


def _quantize(call: Call) -> str:
    return call.emit_function(
        "quantize",
        call.value("x"),
        scale=float(call["scale"]),
        zero_point=_zero_point(call),
        bits=call["bits"],
    )


def _dequantize(call: Call) -> str:
    return call.emit_function(
        "dequantize", call.value("q"), scale=float(call["scale"]), zero_point=_zero_point(call)
    )


def _quantized_convolution(call: Call) -> str:
    return call.emit_function(
        "quantized_conv2d",
        call.value("q"),
        _weight_codes(call),
        zero_point=_zero_point(call),
        weight_bits=call["weight_bits"],
        **_geometry(call),
        group=call["groups"],
    )


def _weight_codes(call: Call) -> str:
    """Packed four-bit weights are stored as ONNX's INT4: one tensor instead of padded rows."""
    if call["weight_bits"] > 4:
        return call.value("weight")
    inputs = call.sizes("q", "quantized_conv2d")[1] // call["groups"]
    codes = unpack_weight(call.constant("weight"), inputs, call["weight_bits"], call["kernel"])
    return call.writer.tensor(f"{call['weight'].target}.int4", codes, "INT4")


def _stated(function: str, standard: str) -> Rule:
    """The local function where answers have to be exact, else the standard operator, which is faster."""

    def write(call: Call) -> str:
        if call.writer.spell_out:
            return call.emit_function(function, call.value("x"))
        return call.emit(standard, call.value("x"))

    return write


def _resize(call: Call) -> str:
    """The local function with its tables, which need fixed sizes; else the standard operator."""
    sizes = [*call.facts("x").shape[2:], *call.facts(call.node).shape[2:]]
    if not call.writer.spell_out or any(isinstance(size, str) for size in sizes):
        return resize(call, "linear", "x", "size", "scales")
    rows, columns, *results = (int(size) for size in sizes)
    tables: list[str] = []
    axes = zip((rows, columns), results, call["scales"] or (None, None), ((-1, 1), (-1,)), strict=True)
    for size, result, scale, shape in axes:
        axis = taps(size, result, scale, call["align_corners"])
        tables += [call.like("place", torch.from_numpy(place)) for place in (axis.low, axis.high)]
        weights = (torch.from_numpy(weight).reshape(shape) for weight in (axis.near, axis.far))
        tables += [call.like("weight", weight) for weight in weights]
    return call.emit_function("resize_bilinear", call.value("x"), *tables)


def _masked(dense: Rule) -> Rule:
    """The dense convolution, of which the active tiles are kept: ONNX has no loop over a list that is as fast."""

    def write(call: Call) -> str:
        return call.emit_function("gather_tiles", dense(call), call.value("tiles"), width=call["width"])

    return write


def _float_convolution(call: Call) -> str:
    return call.emit(
        "Conv",
        call.value("x"),
        call.value("weight"),
        call.optional("bias"),
        kernel_shape=list(call.sizes("weight", "a convolution")[2:]),
        **_geometry(call),
        group=call["groups"],
    )


RULES: Mapping[Any, Rule] = {
    matte.pack_signs.default: _pack_signs,
    matte.pack_units.default: _pack_units,
    matte.pack_plane.default: _pack_plane,
    matte.binary_conv2d.default: _binary_convolution,
    matte.binary_depthwise_conv2d.default: _binary_depthwise_convolution,
    matte.quantize.default: _quantize,
    matte.dequantize.default: _dequantize,
    matte.quantized_conv2d.default: _quantized_convolution,
    matte.sigmoid.default: _stated("sigmoid", "Sigmoid"),
    matte.tanh.default: _stated("tanh", "Tanh"),
    matte.plane_mean.default: _stated("plane_mean", "GlobalAveragePool"),
    matte.resize_bilinear.default: _resize,
    matte.mask_tiles.default: lambda call: call.emit_function(
        "mask_tiles", call.value("mask"), width=call["width"]
    ),
    matte.gather_tiles.default: lambda call: call.emit_function(
        "gather_tiles", call.value("x"), call.value("tiles"), width=call["width"]
    ),
    matte.scatter_tiles.default: lambda call: call.emit_function(
        "scatter_tiles", call.value("values"), call.value("tiles"), call.value("base")
    ),
    matte.spread_tiles.default: lambda call: call.emit_function(
        "spread_tiles", call.value("values"), call.value("tiles"), size=list(call["size"])
    ),
    matte.choose_tokens.default: lambda call: call.emit_function(
        "choose_tokens", call.value("margin"), limit=call["limit"]
    ),
    matte.gather_tokens.default: lambda call: call.emit_function(
        "gather_tokens", call.value("x"), call.value("places")
    ),
    matte.scatter_tokens.default: lambda call: call.emit_function(
        "scatter_tokens", call.value("rows"), call.value("places"), call.value("base")
    ),
    matte.masked_binary_conv2d.default: _masked(_binary_convolution),
    matte.masked_quantized_conv2d.default: _masked(_quantized_convolution),
    matte.masked_conv2d.default: _masked(_float_convolution),
}
