"""Convolution with its bias."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from tvm import te

from mattecompress.backends.tvm.compute_convolution import Geometry, convolution, depthwise
from mattecompress.backends.tvm.conversion import Conversion, Scope
from mattecompress.backends.tvm.operands import CONVOLUTION, compose

aten = torch.ops.aten

DEPTH_MULTIPLE = 4
"""Gathered inputs get zero channels up to a multiple of this, so that they load as vectors."""


def convert(scope: Scope, node: fx.Node) -> Conversion:
    """`aten.conv2d.default`; weights are laid out anew, (O,I,KH,KW) to (KH,KW,I,O)."""
    x, weight_node, bias_node, stride, padding, dilation, groups = _arguments(node)
    weight, bias = scope.tensor(weight_node), scope.tensor(bias_node)
    assert weight is not None
    channels = scope.shape(x)[1]
    geometry = Geometry(tuple(weight.shape[2:]), stride, padding, dilation)  # type: ignore[arg-type]
    is_depthwise = groups == channels == weight.shape[0] and groups > 1
    source = scope.view(x)
    gathers = padding != (0, 0) or not source.is_stored
    laid_out = weight.detach().permute(2, 3, 1, 0).contiguous()
    if is_depthwise:
        laid_out = laid_out[:, :, 0]
    elif gathers and groups == 1:
        laid_out = F.pad(laid_out, (0, 0, 0, -channels % DEPTH_MULTIPLE))
    operands = [source, scope.constant(laid_out.numpy())]
    if bias is not None:
        operands.append(scope.constant(bias.detach().numpy()))

    def compute(source: te.Tensor, kernel: te.Tensor, offset: te.Tensor | None = None) -> te.Tensor:
        if is_depthwise:
            result = depthwise(source, kernel, geometry)
        else:
            result = convolution(source, kernel, geometry, groups)
        return result if offset is None else add_bias(result, offset)

    rows, columns = geometry.kernel
    name = f"{'depthwise' if is_depthwise else 'convolution'}_{rows}x{columns}_{channels}_{weight.shape[0]}"
    return Conversion(compose(compute, operands), name, CONVOLUTION)


def add_bias(x: te.Tensor, bias: te.Tensor) -> te.Tensor:
    """x (N,H,W,C) plus bias (C,)."""
    return te.compute(x.shape, lambda n, i, j, c: x(n, i, j, c) + bias(c), name="bias")


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    defaults = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    arguments = tuple(node.args) + defaults[len(node.args) :]
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    values = [node.kwargs.get(name, value) for name, value in zip(names, arguments, strict=True)]
    pairs = (_pair(value) for value in values[3:6])
    return (*values[:3], *pairs, values[6])


def _pair(value: Any) -> tuple[int, int]:
    values = [value, value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


CONVERTERS = {aten.conv2d.default: convert}
