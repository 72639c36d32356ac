"""Writing masked sums in place of convolutions, in the two ways to read BiVM equation (17).

    taps      W (*) x + c  becomes  M * (W' (*) x) + W1 (*) x + c
    branches  g(W, x)      becomes  M * g(W, x) + g'(W1, x)

W1 are the centre taps of W, W' the others; g is a convolution and what follows it one by one up to its last activation,
batch norms and further convolutions of the same size included, g' a copy of g whose convolutions have centre taps.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.operands import arguments_of
from mattecompress.binarization.binarizable import weight_of
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.program import Program

aten = torch.ops.aten
ACTIVATIONS = (aten.relu.default, aten.hardswish.default, aten.sigmoid.default, aten.tanh.default)


@dataclass
class MaskedSums:
    """Writes masked sums into a program."""

    program: Program
    mask: fx.Node
    resized: dict[tuple[int | str, ...], fx.Node] = field(default_factory=dict)
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def split(self, layers: Iterable[fx.Node]) -> None:
        """Put the surroundings of each layer under the mask."""
        raise NotImplementedError

    def add(self, close: fx.Node, everywhere: fx.Node, mask: fx.Node) -> fx.Node:
        """close * mask + everywhere, behind both."""
        graph = self.program.graph
        with graph.inserting_after(everywhere):
            product = graph.call_function(aten.mul.Tensor, (close, mask))
        with graph.inserting_after(product):
            total = graph.call_function(aten.add.Tensor, (product, everywhere))
        for node in (product, total):
            node.meta["facts"] = self.program.facts(close)
        return total

    def centre(self, layer: fx.Node, name: str) -> fx.Node:
        """The centre taps of a layer's weight, shared by all calls of the layer."""
        reader = weight_of(layer)
        whole = self.program.tensor(reader)
        return self.made_of(reader, name, whole[(slice(None), slice(None), *_middle(whole))])

    def made_of(self, source: fx.Node, name: str, value: Tensor) -> fx.Node:
        """A parameter made of another, by that name or a numbered one; once, however many layers read the other."""
        if source not in self.made:
            path = self.program.free_path(name)
            self.made[source] = self.program.constant(path, nn.Parameter(value.detach().clone()))
        return self.made[source]

    def mask_at(self, layer: fx.Node) -> fx.Node:
        """The mask at the size of a layer's result."""
        facts, source = self.program.facts(layer), self.program.facts(self.mask)
        size = facts.shape[2:]
        if size == source.shape[2:]:
            return self.mask
        if size not in self.resized:
            graph, arguments = self.program.graph, arguments_of(layer)
            with graph.inserting_before(layer):
                sizes = list(self._sizes(arguments["input"], size))
                call = graph.call_function(aten.upsample_bilinear2d.vec, (self.mask, sizes, False, None))
            call.meta["facts"] = facts.but(precision=None, shape=(*source.shape[:2], *size))
            self.resized[size] = call
        return self.resized[size]

    def _sizes(self, image: fx.Node, size: tuple[int | str, ...]) -> Iterator[int | fx.Node]:
        """Height and width: numbers, or nodes that read an open size."""
        for axis, extent in enumerate(size, start=2):
            if isinstance(extent, int):
                yield extent
                continue
            node = self.program.graph.call_function(aten.sym_size.int, (image, axis))
            node.meta["facts"] = self.program.facts(image).but(shape=(extent,), dtype=None, precision=None)
            yield node


@dataclass
class TapSums(MaskedSums):
    """Splits the taps of a convolution; with a mask of ones nothing has changed."""

    surroundings: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def split(self, layers: Iterable[fx.Node]) -> None:
        """Each convolution to two and a sum."""
        for layer in layers:
            self._split(layer)

    def _split(self, layer: fx.Node) -> None:
        given, graph, reader = arguments_of(layer), self.program.graph, weight_of(layer)
        around = self._around(reader)
        middle = self.centre(layer, f"{reader.target}_centre")
        mask = self.mask_at(layer)
        geometry = (given["stride"], given["padding"], given["dilation"], given["groups"])
        alone = ([1, 1], [0, 0], [1, 1], given["groups"])
        with graph.inserting_before(layer):
            close = graph.call_function(aten.conv2d.default, (given["input"], around, None, *geometry))
            everywhere = graph.call_function(
                aten.conv2d.default, (given["input"], middle, given["bias"], *alone)
            )
        for node in (close, everywhere):
            node.meta["facts"] = self.program.facts(layer)
        self.program.replace(layer, self.add(close, everywhere, mask))

    def _around(self, reader: fx.Node) -> fx.Node:
        if reader not in self.surroundings:
            around = self.program.tensor(reader).detach().clone()
            around[(slice(None), slice(None), *_middle(around))] = 0
            path = self.program.free_path(f"{reader.target}_around")
            self.surroundings[reader] = self.program.constant(path, nn.Parameter(around))
        return self.surroundings[reader]


@dataclass
class BranchSums(MaskedSums):
    """Adds to each branch one that sees single pixels."""

    def split(self, layers: Iterable[fx.Node]) -> None:
        """Each branch, which begins with a layer that no other branch holds."""
        chosen, done = list(layers), set[fx.Node]()
        for layer in chosen:
            if layer not in done:
                branch = self._branch(layer, chosen)
                done.update(branch)
                self._double(branch)

    def _branch(self, layer: fx.Node, layers: list[fx.Node]) -> list[fx.Node]:
        """The layer and what follows it one by one, up to the last activation."""
        branch, node = [layer], layer
        while len(node.users) == 1:
            (node,) = node.users
            if not (node in layers or node.target in ACTIVATIONS or self._is_norm(node)):
                break
            branch.append(node)
        last = max((place for place, part in enumerate(branch) if part.target in ACTIVATIONS), default=None)
        return branch[:1] if last is None else branch[: last + 1]

    def _is_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.program.module(node), BatchNorm2d)

    def _double(self, branch: list[fx.Node]) -> None:
        mask = self.mask_at(branch[0])
        source, end = branch[0].all_input_nodes[0], branch[-1]
        behind, copied = end, source
        for part in branch:
            copied = self._copy(part, copied, behind)
            behind = copied
        users = list(end.users)
        total = self.add(end, copied, mask)
        for user in users:
            user.replace_input_with(end, total)

    def _copy(self, part: fx.Node, source: fx.Node, behind: fx.Node) -> fx.Node:
        """A part of a branch on single pixels, reading `source`."""
        program = self.program
        with program.graph.inserting_after(behind):
            if part.op == "call_module":
                path = f"{part.target}_1x1"
                program.add_module(path, copy.deepcopy(program.module(part)))
                made = program.graph.call_module(path, (source,))
            elif part.target in ACTIVATIONS:
                made = program.graph.call_function(part.target, (source,))
            else:
                made = program.graph.call_function(aten.conv2d.default, self._pixelwise(part, source))
        made.meta["facts"] = program.facts(part)
        return made

    def _pixelwise(self, layer: fx.Node, source: fx.Node) -> tuple[Any, ...]:
        given, path = arguments_of(layer), str(weight_of(layer).target).rpartition(".")[0]
        weight, bias = self.centre(layer, f"{path}_1x1.weight"), given["bias"]
        if bias is not None:
            bias = self.made_of(bias, f"{path}_1x1.bias", self.program.tensor(bias))
        return source, weight, bias, [1, 1], [0, 0], [1, 1], given["groups"]


def _middle(weight: Tensor) -> tuple[slice, slice]:
    """Where the centre tap of a weight (O,I,KH,KW) is."""
    row, column = (size // 2 for size in weight.shape[2:])
    return slice(row, row + 1), slice(column, column + 1)
