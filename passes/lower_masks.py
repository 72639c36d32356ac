"""y = M * f(C(x)) + z

becomes  t = tiles where M is not 0,  v = M[t] * f(C(x)[t]),  y = z with v added in the tiles t

for a mask M of `mattecompress.modules.spatial_mask` at any size, convolutions C, and elementwise f; v is compact, so that
nothing of it is computed where M is 0. A convolution D behind C needs C in the tiles that D's window reaches from t.
Every bit is the same, since y = 0 * f + z = z elsewhere.

Source: BiVM equation (17), whose outputs under a zero of the mask are not needed.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.analysis.operands import arguments_of, is_flat
from mattecompress.binarization.masking import find_masks
from mattecompress.ops.masked import choose_width
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program

aten, matte = torch.ops.aten, torch.ops.matte

MASKED: dict[Any, Any] = {
    aten.conv2d.default: matte.masked_conv2d.default,
    matte.binary_conv2d.default: matte.masked_binary_conv2d.default,
    matte.quantized_conv2d.default: matte.masked_quantized_conv2d.default,
}
ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.rsub.Scalar,
    aten.neg.default,
    aten.relu.default,
    aten.prelu.default,
    aten.clamp.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.tanh.default,
    matte.sigmoid.default,
    matte.tanh.default,
}


class MaskedSum(NamedTuple):
    """total = mask * close + everywhere, and the product in it."""

    total: fx.Node
    product: fx.Node
    mask: fx.Node
    close: fx.Node
    everywhere: fx.Node


@dataclass(frozen=True)
class LowerMasks(Pass):
    """Compute what a mask multiplies where it is not 0; afterwards no masked sum has a convolution of its own.

    A program of open size, whose tiles have no number, is left as it is.
    """

    name: ClassVar[str] = "lower-masks"

    def ensures(self, program: Program) -> None:
        """No masked sum is computed everywhere."""
        left = [found.total.name for found in _masked_sums(program)]
        expect(not left, f"masked sums are still computed everywhere: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """One sum after the other, since one may be an operand of the next; those under one mask share its tiles."""
        writer = _Writer(program)
        while sums := _masked_sums(program):
            writer.lower(sums[0])
        program.graph.eliminate_dead_code()
        return (
            f"{writer.sums} sums, {writer.convolutions} convolutions under {len(writer.lists)} lists of tiles"
            if writer.sums
            else None
        )


def _masked_sums(program: Program) -> list[MaskedSum]:
    masks = find_masks(program)
    found = (_masked_sum(program, node, masks) for node in program.find(aten.add.Tensor) if not node.kwargs)
    return [each for each in found if each and _has_convolution(program, each.close, {each.product})]


def _masked_sum(program: Program, total: fx.Node, masks: set[fx.Node]) -> MaskedSum | None:
    shape = program.facts(total).shape
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape):
        return None
    for product, everywhere in _both_ways(total):
        if product.target is not aten.mul.Tensor or len(product.users) > 1:
            continue
        for mask, close in _both_ways(product):
            same = program.facts(close).shape == program.facts(everywhere).shape == shape
            if same and mask in masks and program.facts(mask).shape == (shape[0], 1, *shape[2:]):
                return MaskedSum(total, product, mask, close, everywhere)
    return None


def _both_ways(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The operands of a sum or a product in both orders, if they are two nodes."""
    operands = node.all_input_nodes
    return list(itertools.permutations(operands)) if len(operands) == 2 else []  # type: ignore[arg-type]


def _has_convolution(program: Program, node: fx.Node, readers: set[fx.Node]) -> bool:
    """Whether a convolution is computed for `readers` alone, up to elementwise nodes."""
    if not _is_compact(program, node, readers):
        return False
    return node.target in MASKED or any(
        _has_convolution(program, source, {node}) for source in _activations(node)
    )


def _is_compact(program: Program, node: fx.Node, readers: set[fx.Node]) -> bool:
    """Whether a node can be computed tile by tile, and only `readers` want it."""
    if node.op != "call_function" or set(node.users) != readers:
        return False
    activations = _activations(node)
    if node.target in MASKED:
        return program.facts(node).dtype is not torch.float16 and len(activations) == 1
    return node.target in ELEMENTWISE and all(
        _positions(program, source) == _positions(program, node)
        if source in activations
        else is_flat(program, source)
        for source in node.all_input_nodes
    )


def _positions(program: Program, node: fx.Node) -> tuple[int | str, ...]:
    """Images, rows and columns."""
    shape = program.facts(node).shape
    return *shape[:1], *shape[2:]


def _activations(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def _keeps_size(program: Program, node: fx.Node, x: fx.Node, values: dict[str, Any]) -> bool:
    """Whether windows lie around their outputs, one pixel apart."""
    size = program.facts(x).shape[2:]
    return list(values["stride"]) == [1, 1] and program.facts(node).shape[2:] == size


def _enlargement(program: Program, mask: fx.Node) -> int:
    """By how much a resize has widened a mask."""
    if mask.target is not matte.resize_bilinear.default:
        return 1
    (source,) = mask.all_input_nodes
    return program.facts(mask).sizes[3] // program.facts(source).sizes[3]


class Tiles(NamedTuple):
    """A list of tiles, their width, and the mask that they come from."""

    node: fx.Node
    width: int
    mask: fx.Node


@dataclass
class _Writer:
    """Writes compact operations in front of a sum."""

    program: Program
    lists: dict[fx.Node, Tiles] = field(default_factory=dict)
    gathered: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    widened: dict[tuple[object, ...], fx.Node] = field(default_factory=dict)
    sums: int = 0
    convolutions: int = 0

    def lower(self, found: MaskedSum) -> None:
        """Replace one sum; other sums may read it."""
        self.sums += 1
        graph, tiles = self.program.graph, self.tiles(found.mask)
        with graph.inserting_before(found.total):
            mask = self.gather(found.mask, tiles)
            values = self.compact(found.close, tiles, {found.product})
            factors = [mask if factor is found.mask else values for factor in found.product.args]
            product = self.call(found.product, aten.mul.Tensor, *factors)
            total = self.call(found.total, matte.scatter_tiles.default, product, tiles.node, found.everywhere)
        self.program.replace(found.total, total)

    def tiles(self, mask: fx.Node) -> Tiles:
        """The list of a mask, made once."""
        if mask not in self.lists:
            width = choose_width(self.program.facts(mask).sizes[3], _enlargement(self.program, mask))
            with self.program.graph.inserting_after(mask):
                node = self.call(mask, matte.mask_tiles.default, mask, width)
            self.lists[mask] = Tiles(node, width, mask)
        return self.lists[mask]

    def gather(self, image: fx.Node, tiles: Tiles) -> fx.Node:
        """An image's active tiles; those of a mask are taken once."""
        key = (image, tiles.node)
        if image is not tiles.mask:
            return self.call(image, matte.gather_tiles.default, image, tiles.node, tiles.width)
        if key not in self.gathered:
            with self.program.graph.inserting_after(tiles.node):
                self.gathered[key] = self.call(
                    image, matte.gather_tiles.default, image, tiles.node, tiles.width
                )
        return self.gathered[key]

    def compact(self, node: fx.Node, tiles: Tiles, readers: set[fx.Node]) -> fx.Node:
        """The active tiles of a value."""
        if not _is_compact(self.program, node, readers):
            return self.gather(node, tiles)
        if node.target in MASKED:
            return self.convolution(node, tiles)

        def operand(source: fx.Node) -> fx.Node:
            return source if source.op == "get_attr" else self.compact(source, tiles, {node})

        arguments, keywords = fx.map_arg((node.args, node.kwargs), operand)
        result = self.call(node, node.target, *arguments)
        result.kwargs = keywords
        return result

    def convolution(self, node: fx.Node, tiles: Tiles) -> fx.Node:
        """The masked form; what only it reads is computed as far as its windows reach."""
        self.convolutions += 1
        values = arguments_of(node)
        operands = list(values.values())
        (x,) = _activations(node)
        if _has_convolution(self.program, x, {node}) and _keeps_size(self.program, node, x, values):
            operands[0] = self.around(x, node, values, tiles)
        place = 3 if node.target is aten.conv2d.default else 2
        listed = (*operands[:place], tiles.node, tiles.width, *operands[place:])
        return self.call(node, MASKED[node.target], *listed)

    def around(self, x: fx.Node, node: fx.Node, values: dict[str, Any], tiles: Tiles) -> fx.Node:
        """What a convolution reads, computed in the tiles that its windows reach."""
        reaches = [2 * padding + 1 for padding in values["padding"]]
        wider = tiles if reaches == [1, 1] else self.tiles(self.widen(tiles.mask, reaches))
        compact = self.compact(x, wider, {node})
        size = list(self.program.facts(x).sizes[2:])
        return self.call(x, matte.spread_tiles.default, compact, wider.node, size)

    def widen(self, mask: fx.Node, reaches: list[int]) -> fx.Node:
        """The mask where it is not 0 in a window of that size, made once."""
        key = (mask, *reaches)
        if key not in self.widened:
            window = (reaches, [1, 1], [reach // 2 for reach in reaches])
            with self.program.graph.inserting_after(mask):
                self.widened[key] = self.call(mask, aten.max_pool2d.default, mask, *window)
        return self.widened[key]

    def call(self, origin: fx.Node, target: Any, *arguments: Any) -> fx.Node:
        """A call of an operator in the place of another node; shapes follow when the pass is done."""
        node = self.program.graph.call_function(target, arguments)
        node.meta["facts"] = self.program.facts(origin)
        return node
