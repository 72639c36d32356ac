"""The lowered operations `matte::`, as calls of the local functions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.backends.onnx.spatial import pads
from mattecompress.ops.integer import unpack_weight

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


RULES: Mapping[Any, Rule] = {
    matte.pack_signs.default: _pack_signs,
    matte.pack_units.default: _pack_units,
    matte.binary_conv2d.default: _binary_convolution,
    matte.binary_depthwise_conv2d.default: _binary_depthwise_convolution,
    matte.quantize.default: _quantize,
    matte.dequantize.default: _dequantize,
    matte.quantized_conv2d.default: _quantized_convolution,
}
