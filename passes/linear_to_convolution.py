"""y = x W^T + b,  x (..., I)  becomes  y = conv(x, W) + b,  x as an image of I channels, W of 1x1 pixel

The same sums in another guise, which is what `quantize` and the integer kernels know. Tokens (N,H,W,I) become an image
by a permutation, which is free where images are stored as NHWC; other shapes become images of one row.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

aten = torch.ops.aten
linear = aten.linear.default
TO_IMAGE, TO_TOKENS = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass(frozen=True)
class LinearToConvolution(Pass):
    """Write linear layers as convolutions of one pixel; afterwards none with constant weights is left."""

    name: ClassVar[str] = "linear-to-convolution"

    def ensures(self, program: Program) -> None:
        """None is left."""
        left = [node.name for node in _layers(program)]
        expect(not left, f"linear layers are left: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each layer on its own, each weight once."""
        layers, weights = _layers(program), dict[fx.Node, fx.Node]()
        for node in layers:
            _rewrite(program, node, weights)
        return f"{len(layers)} linear layers" if layers else None


def _layers(program: Program) -> list[fx.Node]:
    """Those whose weights are constants that nothing else reads, and whose shape has no two open sizes to restore."""
    return [node for node in program.find(linear) if _is_own(node.args[1]) and _is_known(program, node)]


def _is_known(program: Program, node: fx.Node) -> bool:
    shape = program.facts(node).shape
    return len(shape) == len(TO_IMAGE) or sum(isinstance(size, str) for size in shape) <= 1


def _is_own(weight: object) -> bool:
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return False
    return all(reader.target is linear for reader in weight.users)


def _rewrite(program: Program, node: fx.Node, weights: dict[fx.Node, fx.Node]) -> None:
    x, weight, *bias = node.args
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if weight not in weights:
        value = program.tensor(weight).detach().clone()[:, :, None, None]
        path = program.free_path(f"{weight.target}_of_pixels")
        weights[weight] = program.constant(path, nn.Parameter(value))
    shape = program.facts(node).shape
    is_tokens = len(shape) == len(TO_IMAGE)

    def write(target: Any, *arguments: Any) -> fx.Node:
        with program.graph.inserting_before(node):
            call = program.graph.call_function(target, arguments)
        call.meta["facts"] = program.facts(node)
        return call

    grid = x if is_tokens else write(aten.reshape.default, x, [1, 1, -1, program.facts(x).shape[-1]])
    image = write(aten.permute.default, grid, TO_IMAGE)
    result = write(aten.conv2d.default, image, weights[weight], *bias)
    tokens = write(aten.permute.default, result, TO_TOKENS)
    if not is_tokens:
        sizes = [-1 if isinstance(size, str) else size for size in shape]
        tokens = write(aten.reshape.default, tokens, sizes)
    program.replace(node, tokens)
