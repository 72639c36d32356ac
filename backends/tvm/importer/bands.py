"""The last layers of a binary network, at full resolution, computed band by band of rows.

A chain of layers from bits to an output keeps its size, and each tensor between two of them is read by the next alone.
Cut into bands of rows, with the few more rows that windows reach over, only a band of each is in memory, which saves
memory where the result is smaller than they are:

    for each band: slice of the bits, binary convolution, activation, convolution, ..., and the bands are joined

What a window reaches over beyond the image stays padding; rows computed from padding inside the image are cut off.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from typing import Any

import torch
from torch import fx

from mattecompress import ops
from mattecompress.analysis.propagation import propagate
from mattecompress.backends.tvm.importer.absorption import PACKINGS
from mattecompress.facts import Facts, Provenance
from mattecompress.program import Program
from mattecompress.provenance import origins

assert ops
aten, matte = torch.ops.aten, torch.ops.matte

STRIDES: dict[Any, int] = {aten.conv2d.default: 3, matte.binary_conv2d.default: 3}
"""Convolutions, and which argument is the stride; padding and dilation follow."""
POINTWISE = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.relu.default,
    aten.hardswish.default,
    aten._prelu_kernel.default,
    aten.prelu.default,
}
MOST_BYTES = 4 << 20
"""A tensor between two layers that is larger is cut."""
ROWS, SMALLEST = 4, 16
"""Convolutions compute rows by fours; fewer rows than the latter are no band."""


@dataclass(frozen=True)
class Chain:
    """The bits, and the nodes that follow them one after the other."""

    bits: fx.Node
    nodes: tuple[fx.Node, ...]


def cut_into_bands(program: Program, most_bytes: int = MOST_BYTES) -> Program:
    """The program with its chains cut where a tensor in one exceeds `most_bytes` and the result; `program` is left alone."""
    cut = program.clone()
    chains = [chain for node in list(cut.operations()) if (chain := find_chain(cut, node))]
    chains = [
        chain for chain in chains if largest_bytes(cut, chain) > max(most_bytes, _bytes(cut, chain.nodes[-1]))
    ]
    for chain in chains:
        _cut(cut, chain, most_bytes)
    if chains:
        propagate(cut)
    return cut


def find_chain(program: Program, bits: fx.Node) -> Chain | None:
    """The chain that starts at a packing, up to the last of several convolutions."""
    if bits.target not in PACKINGS:
        return None
    nodes: list[fx.Node] = []
    reader = _only_reader(bits)
    while reader is not None and _keeps_rows(program, reader):
        nodes.append(reader)
        reader = _only_reader(reader)
    while nodes and nodes[-1].target not in STRIDES:
        nodes.pop()
    convolutions = sum(node.target in STRIDES for node in nodes)
    return Chain(bits, tuple(nodes)) if convolutions > 1 else None


def largest_bytes(program: Program, chain: Chain) -> int:
    """Of the tensors inside a chain."""
    return max(_bytes(program, node) for node in chain.nodes[:-1])


def _bytes(program: Program, node: fx.Node) -> int:
    return 4 * prod(program.facts(node).sizes)


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _keeps_rows(program: Program, node: fx.Node) -> bool:
    """Whether a node's rows depend on the rows of one activation around them, and are as many."""
    activations = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if len(activations) != 1 or len(program.facts(node).shape) != 4:
        return False
    if node.target in POINTWISE:
        return all(_is_flat(program, source) for source in node.all_input_nodes if source.op == "get_attr")
    if node.target not in STRIDES:
        return False
    stride, dilation = _argument(node, 0, 1), _argument(node, 2, 1)
    window = program.facts(node.args[1]).sizes  # type: ignore[arg-type]
    rows = window[1] if node.target is matte.binary_conv2d.default else window[2]
    return stride == 1 and dilation == 1 and 2 * _padding(node) == rows - 1


def _is_flat(program: Program, constant: fx.Node) -> bool:
    shape = program.facts(constant).sizes
    return len(shape) < 2 or shape[-2] == 1


def _argument(node: fx.Node, place: int, default: int) -> int:
    """The vertical stride, padding or dilation of a convolution."""
    at = STRIDES[node.target] + place
    value = node.args[at] if len(node.args) > at else default
    return int(value[0] if isinstance(value, (list, tuple)) else value)  # type: ignore[arg-type]


def _padding(node: fx.Node) -> int:
    return _argument(node, 1, 0) if node.target in STRIDES else 0


def choose_bounds(height: int, bands: int, reach: int) -> list[int]:
    """First rows of the bands and the height: about even, so that bands and what windows reach fill fours of rows."""
    bounds, bands = [0], min(bands, max(1, height // SMALLEST))
    for band in range(1, bands):
        even = height * band // bands

        def waste(end: int, start: int = bounds[-1], even: int = even) -> tuple[int, int]:
            return -(min(end + reach, height) - max(start - reach, 0)) % ROWS, abs(end - even)

        bounds.append(min(range(even - ROWS // 2, even + ROWS), key=waste))
    return [*bounds, height]


def _cut(program: Program, chain: Chain, most_bytes: int) -> None:
    height = program.facts(chain.nodes[-1]).sizes[2]
    largest = largest_bytes(program, chain)
    reach = next((_padding(node) for node in reversed(chain.nodes) if _padding(node)), 0)
    bounds = choose_bounds(height, ceil(largest / most_bytes), reach)
    last = chain.nodes[-1]
    with program.graph.inserting_before(last):
        bands = [_compute_band(program, chain, *band, height) for band in pairwise(bounds)]
        joined = program.graph.call_function(aten.cat.default, (bands, 2))
    joined.meta["facts"] = _made(program, last, *origins(last))
    last.replace_all_uses_with(joined)
    for node in reversed(chain.nodes):
        program.graph.erase_node(node)


def _compute_band(program: Program, chain: Chain, start: int, end: int, height: int) -> fx.Node:
    """The rows from `start` to `end` of the chain's last node; rows are cut off where the next convolution reads."""
    needed, *results = _rows_needed(chain, start, end, height)
    value, have = _slice(program, chain.bits, chain.bits, 1, needed, (0, height)), needed
    for node, rows in zip(chain.nodes, (needed, *results), strict=False):
        if node.target in STRIDES:
            value, have = _slice(program, value, node, 2, rows, have), rows
        old, copied = value, program.graph.node_copy(node)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                copied.replace_input_with(source, old)
        copied.meta["facts"] = _made(program, node, *origins(node))
        value = copied
    return _slice(program, value, chain.nodes[-1], 2, (start, end), have)


def _rows_needed(chain: Chain, start: int, end: int, height: int) -> Iterator[tuple[int, int]]:
    """The rows of the bits and of every node that a band reads, in order."""
    rows = [(start, end)]
    for node in reversed(chain.nodes):
        first, last = rows[-1]
        rows.append((max(0, first - _padding(node)), min(height, last + _padding(node))))
    return reversed(rows)


def _slice(
    program: Program, value: fx.Node, like: fx.Node, axis: int, rows: tuple[int, int], have: tuple[int, int]
) -> fx.Node:
    if rows == have:
        return value
    bounds = (rows[0] - have[0], rows[1] - have[0])
    result = program.graph.call_function(aten.slice.Tensor, (value, axis, *bounds))
    result.meta["facts"] = _made(program, like)
    return result


def _made(program: Program, like: fx.Node, *origins: str) -> Facts:
    """The facts of a node, made here from others."""
    return program.facts(like).but(made=Provenance("cut-into-bands", origins))
