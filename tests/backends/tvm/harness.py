"""Kernels of single operations: emitted, scheduled, built and run, with the reference's answer beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor, fx
from tvm import relax

import mattecompress.ops  # noqa: F401  (registers torch.ops.matte)
from mattecompress.backends.tvm.kernels import (
    bitserial,
    bitserial_depthwise,
    integer,
    listed,
    masked,
    masked_float,
    packing,
)
from mattecompress.backends.tvm.schedules.guard import guard_loops
from mattecompress.backends.tvm.schedules.pieces import cut_loops

matte = torch.ops.matte
KERNELS: dict[Any, tuple[Callable[..., relax.Var], Callable[[Any], str | None] | None]] = {
    matte.pack_signs.default: (packing.emit_pack_signs, packing.schedule_packing),
    matte.pack_units.default: (packing.emit_pack_units, packing.schedule_packing),
    matte.pack_plane.default: (packing.emit_pack_plane, packing.schedule_packing),
    matte.binary_conv2d.default: (bitserial.emit_binary_conv2d, bitserial.schedule_binary_convolution),
    matte.binary_depthwise_conv2d.default: (
        bitserial_depthwise.emit_binary_depthwise_conv2d,
        bitserial_depthwise.schedule_binary_depthwise,
    ),
    matte.binary_conv2d_bits.default: (
        bitserial.emit_binary_conv2d_bits,
        bitserial.schedule_binary_convolution,
    ),
    matte.binary_depthwise_conv2d_bits.default: (
        bitserial_depthwise.emit_binary_depthwise_conv2d_bits,
        bitserial_depthwise.schedule_binary_depthwise,
    ),
    matte.quantize.default: (integer.emit_quantize, None),
    matte.dequantize.default: (integer.emit_dequantize, None),
    matte.quantized_conv2d.default: (integer.emit_quantized_conv2d, integer.schedule_integer_convolution),
    matte.mask_tiles.default: (listed.emit_mask_tiles, None),
    matte.masked_binary_conv2d.default: (
        masked.emit_masked_binary_conv2d,
        masked.schedule_masked_convolution,
    ),
    matte.masked_quantized_conv2d.default: (
        masked.emit_masked_quantized_conv2d,
        masked.schedule_masked_convolution,
    ),
    matte.masked_conv2d.default: (masked_float.emit_masked_conv2d, masked.schedule_masked_convolution),
}
STORED_AS_IS = (
    matte.binary_conv2d.default,
    matte.binary_depthwise_conv2d.default,
    matte.binary_conv2d_bits.default,
    matte.binary_depthwise_conv2d_bits.default,
    matte.masked_binary_conv2d.default,
)
"""Operations that take bits, which are stored in the order the operation gives them."""


@dataclass(frozen=True)
class Kernel:
    """A scheduled function, its arguments and the answer it must give, all as stored in memory."""

    function: tvm.tirx.PrimFunc
    arguments: tuple[np.ndarray, ...]
    expected: np.ndarray


def nhwc(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy())


def make_kernel(
    op: Any, arguments: Sequence[Any], target: tvm.target.Target, scheduled: bool = True
) -> Kernel:
    """The kernel of `op` for one call; its first argument is the input, other tensors are constants."""
    emit, rule = KERNELS[op]
    graph = fx.Graph()
    nodes = [graph.placeholder(f"t{i}") if isinstance(a, Tensor) else a for i, a in enumerate(arguments)]
    node = graph.call_function(op, tuple(nodes))
    source = arguments[0].numpy() if op in STORED_AS_IS else nhwc(arguments[0])
    answer = op(*arguments)
    gives_bits = answer.dtype == torch.uint8 and ("pack" in str(op) or "bits" in str(op))
    expected = answer.numpy() if gives_bits else nhwc(answer)
    with target:
        builder = relax.BlockBuilder()
        variable = relax.Var("x", relax.TensorType(list(source.shape), str(source.dtype)))
        with builder.function("main", [variable]):
            with builder.dataflow():
                others = [argument for argument in arguments[1:] if isinstance(argument, Tensor)]
                result = builder.emit_output(emit(builder, node, [variable, *others]))
            builder.emit_func_output(result)
        module = builder.finalize()
        (function,) = (f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc))
        if rule is not None and scheduled:
            schedule = tvm.s_tir.Schedule(function)
            assert rule(schedule) is None
            function = guard_loops(cut_loops(schedule.mod["main"]))
    fields = module["main"].body.blocks[0].bindings[0].value.args[1]
    constants = [field.value.numpy() for field in fields.fields[1:]]
    function = function.with_attr("tirx.is_scheduled", True)
    return Kernel(function, (source, *constants), expected)


def build(kernels: Sequence[Kernel], target: tvm.target.Target) -> Any:
    """One library whose functions are called kernel_0, kernel_1, ..."""
    names = [f"kernel_{index}" for index in range(len(kernels))]
    functions = {
        name: kernel.function.with_attr("global_symbol", name)
        for name, kernel in zip(names, kernels, strict=True)
    }
    return tvm.tirx.build(tvm.IRModule(functions), target=target)


def run_here(kernel: Kernel, target: tvm.target.Target) -> np.ndarray:
    """What a kernel computes on this machine."""
    output = tvm.runtime.tensor(np.zeros_like(kernel.expected))
    function = build([kernel], target)["kernel_0"]
    function(*(tvm.runtime.tensor(array) for array in kernel.arguments), output)
    return output.numpy()
