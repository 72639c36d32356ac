"""Convolution with its bias: which of three ways computes it, and its weights laid out for that."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from tvm import te

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry, convolution, depthwise, pair
from mattecompress.backends.tvm.compute.operands import CONVOLUTION, Array, compose
from mattecompress.backends.tvm.compute.winograd import suits_winograd, transform_weight, winograd
from mattecompress.backends.tvm.importer.conversion import (
    Conversion,
    Scope,
    refuse_computed,
    refuse_other_ranks,
)
from mattecompress.backends.tvm.kernels.intrinsics import current_target
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.program import Program

aten = torch.ops.aten

DEPTH_MULTIPLE = {torch.float32: 4, torch.float16: 8}
"""Gathered inputs get zero channels up to a multiple of this, so that they load as vectors of 128 bits."""
NEON_BYTES = 16


@dataclass(frozen=True)
class Way:
    """One way to compute a convolution: its weights and what becomes of them and the input."""

    name: str
    weight: Array
    compute: Callable[[te.Tensor, te.Tensor], te.Tensor]


def convert(scope: Scope, node: fx.Node) -> Conversion:
    """`aten.conv2d.default` on constant weights."""
    given = arguments_of(node)
    x, groups = given["input"], given["groups"]
    weight, bias = scope.tensor(given["weight"]), scope.tensor(given["bias"])
    assert weight is not None
    stride, padding, dilation = (pair(given[name]) for name in ("stride", "padding", "dilation"))
    outputs, _, rows, columns = weight.shape
    geometry, inputs = Geometry((rows, columns), stride, padding, dilation), scope.shape(x)[1]
    source = scope.view(x)
    gathers = padding != (0, 0) or not source.is_stored
    if groups == inputs == outputs and groups > 1:
        way = _depthwise(weight, geometry)
    elif suits_winograd(geometry, scope.shape(node)[2:], inputs, outputs, groups):
        way = _winograd(weight, geometry)
    else:
        way = _direct(weight, geometry, groups, pad=gathers and groups == 1 and not _gathers_planes(weight))
    operands = [source, scope.constant(way.weight)]
    if bias is not None:
        operands.append(scope.constant(bias.detach().numpy()))

    def compute(tensor: te.Tensor, kernel: te.Tensor, offset: te.Tensor | None = None) -> te.Tensor:
        result = way.compute(tensor, kernel)
        return result if offset is None else add_bias(result, offset)

    name = f"{way.name}_{rows}x{columns}_{inputs}_{outputs}"
    return Conversion(compose(compute, operands), name, CONVOLUTION)


def add_bias(x: te.Tensor, bias: te.Tensor) -> te.Tensor:
    """x (N,H,W,C) plus bias (C,)."""
    return te.compute(x.shape, lambda n, i, j, c: x(n, i, j, c) + bias(c), name="bias")


def _depthwise(weight: Tensor, geometry: Geometry) -> Way:
    return Way("depthwise", _lay_out(weight)[:, :, 0], lambda x, kernel: depthwise(x, kernel, geometry))


def _winograd(weight: Tensor, geometry: Geometry) -> Way:
    transformed = transform_weight(_lay_out(weight, pad=True))
    return Way("winograd", transformed, lambda x, kernel: winograd(x, kernel, geometry))


def _direct(weight: Tensor, geometry: Geometry, groups: int, pad: bool) -> Way:
    laid_out = _lay_out(weight, pad)
    return Way("convolution", laid_out, lambda x, kernel: convolution(x, kernel, geometry, groups))


def _gathers_planes(weight: Tensor) -> bool:
    """Whether channels are fewer than lanes of a register wider than those whose elements multiply; they stay planes."""
    octets = Registers.of(current_target()).bytes
    return octets > NEON_BYTES and weight.shape[1] < octets // weight.element_size()


def _lay_out(weight: Tensor, pad: bool = False) -> Array:
    """(O,I,KH,KW) to (KH,KW,I,O), with zeros after I up to a multiple of `DEPTH_MULTIPLE` where wanted."""
    laid_out = weight.detach().permute(2, 3, 1, 0)
    if pad:
        laid_out = F.pad(laid_out, (0, 0, 0, -weight.shape[1] % DEPTH_MULTIPLE[weight.dtype]))
    result: Array = laid_out.contiguous().numpy()
    return result


def _refuse(program: Program, node: fx.Node) -> str | None:
    return refuse_other_ranks(program, node) or refuse_computed(program, node)


CONVERTERS = {aten.conv2d.default: convert}
REFUSALS = {aten.conv2d.default: _refuse}
