"""ATen convolutions, pooling, resizing, reductions and matrix products."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError

aten = torch.ops.aten

Rule = Callable[[Call], str]

LONGEST_IN_ORDER = 128
"""The products that ONNX Runtime's matrix kernels add before they begin another partial sum."""


def pads(padding: Sequence[int]) -> list[int]:
    """ONNX's order of a symmetric padding: all befores, then all afters."""
    return [*padding, *padding]


def _pair(values: Sequence[int]) -> list[int]:
    return [values[0], values[-1]]


def _convolution(call: Call) -> str:
    geometry = {
        "kernel_shape": _kernel_shape(call),
        "strides": _along_axes(call, "stride"),
        "pads": pads(_along_axes(call, "padding")),
        "dilations": _along_axes(call, "dilation"),
    }
    if call.writer.spell_out and _sums_in_order(call):
        return _convolve_in_order(call, geometry)
    operands = call.value("input"), call.value("weight"), call.optional("bias")
    return call.emit("Conv", *operands, **geometry, group=call["groups"])


def _along_axes(call: Call, name: str) -> list[int]:
    """An argument of a convolution of one or two dimensions, a number for each."""
    values, axes = list(call[name]), len(_kernel_shape(call))
    return values * axes if len(values) == 1 else values


def _kernel_shape(call: Call) -> list[int]:
    return list(call.sizes("weight", "a convolution")[2:])


def _sums_in_order(call: Call) -> bool:
    """Whether a sum has few enough products for the runtime to take them one after the other."""
    weight, facts = call["weight"], call.facts("weight")
    constant = isinstance(weight, torch.fx.Node) and weight.op == "get_attr"
    in_float = facts.dtype is torch.float32 and len(facts.shape) == 4 and call["groups"] == 1
    return constant and in_float and math.prod(facts.sizes[1:]) <= LONGEST_IN_ORDER


def _convolve_in_order(call: Call, geometry: Mapping[str, list[int]]) -> str:
    """Sums over rows and columns of the kernel, then channels, as the compiled kernels have them, and PyTorch for images.

    Every tap becomes a channel by a convolution with ones and zeros; a product of matrices takes these in order, where
    the runtime's own convolution does not, or has a product that follows multiplied into its weights.
    """
    outputs, inputs, *window = call.facts("weight").sizes
    taps = inputs * math.prod(window)
    x = call.value("input")
    if math.prod(window) > 1 or geometry["strides"] != [1, 1]:
        choice = torch.eye(taps).reshape(taps, *window, inputs).permute(0, 3, 1, 2)
        x = call.emit("Conv", x, call.like("taps", choice.contiguous()), **geometry, group=1)
    matrix = call.constant("weight").permute(2, 3, 1, 0).reshape(taps, outputs)
    pixels = call.emit("Transpose", x, perm=[0, 2, 3, 1])
    sums = call.emit("MatMul", pixels, call.like("in_order", matrix.contiguous()))
    if call["bias"] is not None:
        sums = call.emit("Add", sums, call.value("bias"))
    return call.emit("Transpose", sums, perm=[0, 3, 1, 2])


def _transposed_convolution(call: Call) -> str:
    return call.emit(
        "ConvTranspose",
        call.value("input"),
        call.value("weight"),
        call.optional("bias"),
        kernel_shape=_kernel_shape(call),
        strides=_pair(call["stride"]),
        pads=pads(_pair(call["padding"])),
        output_padding=_pair(call["output_padding"]),
        dilations=_pair(call["dilation"]),
        group=call["groups"],
    )


def _window(call: Call) -> dict[str, Any]:
    kernel, padding = _pair(call["kernel_size"]), _pair(call["padding"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    dilation = _pair(call.arguments.get("dilation", [1]))
    return {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": pads(padding),
        "ceil_mode": int(call["ceil_mode"] and _rounds_up(call, kernel, stride, padding, dilation)),
    }


def _rounds_up(
    call: Call, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> bool:
    """Whether ceil_mode adds a window; torch, unlike ONNX, drops one that would start beyond the input."""
    given, wanted = call.facts("self").shape[-2:], call.facts(call.node).shape[-2:]
    if any(isinstance(size, str) for size in given):
        if any(padding) or any(s > k for s, k in zip(stride, kernel, strict=True)):
            raise RefusalError(
                "ceil_mode with padding or gaps needs a fixed resolution: run set-resolution first"
            )
        return True
    sizes, results = [int(size) for size in given], [int(size) for size in wanted]
    axes = list(zip(sizes, kernel, stride, padding, dilation, strict=True))
    spans = [size + 2 * p - d * (k - 1) - 1 for size, k, _, p, d in axes]
    lower = [span // s + 1 for span, s in zip(spans, stride, strict=True)]
    upper = [-(-span // s) + 1 for span, s in zip(spans, stride, strict=True)]
    if results not in (lower, upper):
        raise RefusalError("ceil_mode that adds a window on one axis and drops it on the other")
    return results != lower


def _average_pool(call: Call) -> str:
    """A window that ceil_mode lets over the edge is divided by its taps inside, in both."""
    if call["divisor_override"] is not None:
        raise RefusalError("divisor_override")
    padded = any(call["padding"]) and call["count_include_pad"]
    if padded and call["ceil_mode"]:
        raise RefusalError("ceil_mode with counted padding")
    return call.emit("AveragePool", call.value("self"), **_window(call), count_include_pad=int(padded))


def _max_pool(call: Call) -> str:
    return call.emit("MaxPool", call.value("self"), **_window(call), dilations=_pair(call["dilation"]))


def _adaptive_pool(call: Call) -> str:
    """To one pixel, or to a size that divides the input's."""
    wanted = _pair(call["output_size"])
    if wanted == [1, 1]:
        return call.emit("GlobalAveragePool", call.value("self"))
    given = call.sizes("self", "adaptive_avg_pool2d")[-2:]
    if any(size % goal for size, goal in zip(given, wanted, strict=True)):
        raise RefusalError(f"adaptive_avg_pool2d from {given} to {tuple(wanted)}: windows differ in size")
    kernel = [size // goal for size, goal in zip(given, wanted, strict=True)]
    return call.emit("AveragePool", call.value("self"), kernel_shape=kernel, strides=kernel)


def _resize(mode: str) -> Rule:
    return lambda call: resize(call, mode, "input", "output_size", "scale_factors")


def _resize_line(call: Call) -> str:
    """Linear along the last of three axes."""
    if call["output_size"] is None or call["align_corners"]:
        raise RefusalError("linear interpolation by scale factors or with aligned corners")
    size = call.size_vector(call["output_size"])
    attributes = {"mode": "linear", "axes": [2], "coordinate_transformation_mode": "half_pixel"}
    return call.emit("Resize", call.value("input"), "", "", size, **attributes)


def resize(call: Call, mode: str, source: str, size: str, scales: str) -> str:
    """ONNX's `Resize` of a call whose arguments have the given names."""
    align = bool(call.arguments.get("align_corners", False))
    attributes: dict[str, Any] = {
        "mode": mode,
        "axes": [2, 3],
        "coordinate_transformation_mode": "align_corners" if align else "half_pixel",
    }
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": -0.75}
    factors = call.arguments.get(scales) or None
    if factors is not None and not align:
        return call.emit("Resize", call.value(source), "", _factors(call, source, factors), **attributes)
    wanted = call[size]
    if wanted is None:
        wanted = call.sizes(call.node, "align_corners with scale factors")[2:]
    return call.emit("Resize", call.value(source), "", "", call.size_vector(wanted), **attributes)


def _factors(call: Call, source: str, factors: Sequence[float]) -> str:
    """Torch samples with the factors themselves, and rounds sizes down in double; ONNX does so in float32."""
    shapes = zip(call.facts(source).shape[2:], call.facts(call.node).shape[2:], factors, strict=True)
    for given, wanted, factor in shapes:
        both_known = isinstance(given, int) and isinstance(wanted, int)
        if both_known and math.floor(np.float32(given) * np.float32(factor)) != wanted:
            raise RefusalError(f"scale factor {factor} of {given} rounds to another size in float32")
    return call.writer.numbers(tuple(factors), torch.float32)


def _reduction(kind: str) -> Rule:
    def write(call: Call) -> str:
        axes = call["dim"]
        if axes is None or axes == []:
            axes = range(call.rank("self"))
        axes = axes if isinstance(axes, Sequence | range) else [axes]
        value = call.value("self", call.dtype)
        return call.emit(kind, value, call.integers(*axes), keepdims=int(call["keepdim"]))

    return write


def _mean_of_all(call: Call) -> str:
    return call.emit("ReduceMean", call.value("self", call.dtype), keepdims=0)


def _softmax(kind: str) -> Rule:
    return lambda call: call.emit(kind, call.value("self", call.dtype), axis=call.axis("self"))


def _matmul(left: str, right: str) -> Rule:
    return lambda call: call.emit("MatMul", call.value(left), call.value(right))


def _linear(call: Call) -> str:
    weight = call.emit("Transpose", call.value("weight"), perm=[1, 0])
    product = call.emit("MatMul", call.value("input"), weight)
    return product if call["bias"] is None else call.emit("Add", product, call.value("bias"))


def _matmul_add(call: Call) -> str:
    alpha, beta = float(call.number("alpha")), float(call.number("beta"))
    return call.emit(
        "Gemm", call.value("mat1"), call.value("mat2"), call.value("self"), alpha=alpha, beta=beta
    )


def _einsum(call: Call) -> str:
    return call.emit(
        "Einsum", *(call.operand(tensor) for tensor in call["tensors"]), equation=call["equation"]
    )


def _layer_norm(call: Call) -> str:
    shape = call["normalized_shape"]
    scale = call.value("weight") if call["weight"] is not None else call.like("scale", torch.ones(shape))
    inputs = (call.value("input"), scale, call.optional("bias"))
    return call.emit("LayerNormalization", *inputs, axis=-len(shape), epsilon=float(call["eps"]))


def _batch_norm(call: Call) -> str:
    if call["training"]:
        raise RefusalError("batch norm in training mode")
    channels = call.sizes("running_mean", "batch norm")
    scale = call.value("weight") if call["weight"] is not None else call.like("scale", torch.ones(channels))
    bias = call.value("bias") if call["bias"] is not None else call.like("bias", torch.zeros(channels))
    statistics = call.value("running_mean"), call.value("running_var")
    inputs = (call.value("input"), scale, bias, *statistics)
    return call.emit("BatchNormalization", *inputs, epsilon=float(call["eps"]))


RULES: Mapping[Any, Rule] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.avg_pool2d.default: _average_pool,
    aten.max_pool2d.default: _max_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.upsample_bilinear2d.vec: _resize("linear"),
    aten.upsample_linear1d.vec: _resize_line,
    aten.upsample_bicubic2d.vec: _resize("cubic"),
    aten.upsample_nearest2d.vec: _resize("nearest"),
    aten.mean.dim: _reduction("ReduceMean"),
    aten.mean.default: _mean_of_all,
    aten.sum.dim_IntList: _reduction("ReduceSum"),
    aten.amax.default: _reduction("ReduceMax"),
    aten.amin.default: _reduction("ReduceMin"),
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten.matmul.default: _matmul("self", "other"),
    aten.bmm.default: _matmul("self", "mat2"),
    aten.mm.default: _matmul("self", "mat2"),
    aten.linear.default: _linear,
    aten.addmm.default: _matmul_add,
    aten.einsum.default: _einsum,
    aten.layer_norm.default: _layer_norm,
    aten.batch_norm.default: _batch_norm,
}
