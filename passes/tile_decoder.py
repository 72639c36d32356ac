"""y = D(sources), all rows at once,  becomes  y[a:b] = D_ab(sources[rows that a..b read])  for one strip after another

where D is made of convolutions, doublings of the size and operations by the pixel. What rows a..b read is followed
backwards through each operation:

    convolution of kernel k, stride s, padding p      a s - p  to  (b - 1) s - p + k
    bilinear doubling                                 floor((a - 1/2) / 2)  to  floor((b - 3/2) / 2) + 2

and cut at the image's border, where the padding of the convolution stays. Every row is computed from the same numbers as
before; MEMatte's program, whose idea it is, pads images to whole tiles instead and differs at their border.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

from mattecompress.analysis.scopes import nodes_of
from mattecompress.errors import UserError
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

aten = torch.ops.aten
Rows = tuple[int, int]
_DOUBLINGS = {aten.upsample_bilinear2d.vec}
_DEFAULTS: tuple[Any, ...] = (None, None, [1, 1], [0, 0], [1, 1], 1)
_BY_PIXEL = {
    aten.add.Tensor,
    aten.clamp.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.mul.Tensor,
    aten.relu.default,
    aten.sigmoid.default,
    aten.sub.Tensor,
}


class StripError(UserError):
    """A strip without rows."""


@dataclass(frozen=True)
class TileDecoder(Pass):
    """Compute a decoder strip by strip, exactly; afterwards none of its values is higher than a strip needs.

    decoder: the scope that it is in.
    rows: of one strip, of the decoder's result; fewer take less memory, and more time where strips overlap.
    """

    decoder: str = "decoder"
    rows: int = 128
    name: ClassVar[str] = "tile-decoder"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise StripError(f"rows={self.rows}: a strip needs at least one")

    def requires(self, program: Program) -> None:
        """The size is fixed, and the decoder is there, hands one value on, and sees what is near only."""
        expect(program.level is not Level.LOWERED, "the program is lowered: run tile-decoder before lowering")
        nodes = nodes_of(program, self.decoder)
        expect(nodes, f"no operation is in the scope '{self.decoder}'")
        ends = _ends(nodes)
        if _are_joined(ends):
            return
        expect(len(ends) == 1, f"{self.decoder} hands on {len(ends)} values, not one")
        for node in nodes:
            fixed = all(isinstance(size, int) for size in program.facts(node).shape[1:])
            expect(fixed, "the program's size is open: fix it with -p 'set-resolution{height=512 width=512}'")
            expect(
                _is_local(program, node), f"%{node.name}, {node.target}, cannot be computed strip by strip"
            )

    def ensures(self, program: Program) -> None:
        """Strips, none of which is higher than asked for, are joined."""
        ends = _ends(nodes_of(program, self.decoder))
        expect(_are_joined(ends), "the decoder is computed whole")
        expect(all(_height(program, end) <= self.rows for end in ends), "a strip is too high")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each strip, then their join."""
        nodes = nodes_of(program, self.decoder)
        end, *others = _ends(nodes)
        height = _height(program, end)
        if others or height <= self.rows:
            return None
        strips = []
        for first in range(0, height, self.rows):
            needed = _rows_read(program, nodes, end, (first, min(first + self.rows, height)))
            strips.append(_Strip(program, needed, end).write(nodes))
        with program.graph.inserting_before(end):
            joined = program.graph.call_function(aten.cat.default, (strips, 2))
        joined.meta["facts"] = program.facts(end).but(scope="")
        program.replace(end, joined)
        return f"{len(strips)} strips of {self.rows} rows"


class _Strip:
    """Writes the operations of one strip in front of the decoder's end.

    needed: the rows of each value that the strip computes or reads.
    """

    def __init__(self, program: Program, needed: Mapping[fx.Node, Rows], end: fx.Node) -> None:
        self.program = program
        self.needed = needed
        self.end = end
        self.written: dict[fx.Node, fx.Node] = {}

    def write(self, nodes: list[fx.Node]) -> fx.Node:
        """The strip of the decoder's result."""
        for node in nodes:
            self.written[node] = self._compute(node)
        return self.written[self.end]

    def _compute(self, node: fx.Node) -> fx.Node:
        rows = self.needed[node]
        if node.target is aten.conv2d.default:
            return self._convolve(node, rows)
        if node.target in _DOUBLINGS:
            source = _image(node)
            first, last = _read_by_doubling(rows, _height(self.program, source))
            size = [2 * (last - first), int(self.program.facts(node).shape[3])]
            whole = self._call(node, node.target, self._rows(source, (first, last)), size, False, None)
            return self._cut(node, whole, (2 * first, 2 * last), rows)

        def strip(argument: fx.Node) -> fx.Node:
            return argument if argument not in self.needed else self._rows(argument, rows)

        arguments = fx.map_arg(node.args, strip)
        with self.program.graph.inserting_before(self.end):
            copy = self.program.graph.node_copy(node)
        copy.args = arguments
        copy.meta = {"facts": self.program.facts(node)}
        return copy

    def _convolve(self, node: fx.Node, rows: Rows) -> fx.Node:
        """Without padding above and below, but for what the image's border has of it."""
        source, geometry = _image(node), _geometry(self.program, node)
        height = _height(self.program, source)
        first, last = geometry.rows_read(rows)
        x = self._rows(source, (max(first, 0), min(last, height)))
        above, below = max(-first, 0), max(last - height, 0)
        if above or below:
            x = self._call(node, aten.constant_pad_nd.default, x, [0, 0, above, below])
        weight, bias, stride, padding, *rest = geometry.arguments
        return self._call(node, node.target, x, weight, bias, stride, [0, padding[1]], *rest)

    def _rows(self, source: fx.Node, rows: Rows) -> fx.Node:
        """These rows of a value from before the decoder, or of what is computed of one within."""
        if source in self.written:
            return self._cut(source, self.written[source], self.needed[source], rows)
        return self._cut(source, source, (0, _height(self.program, source)), rows)

    def _cut(self, like: fx.Node, value: fx.Node, have: Rows, want: Rows) -> fx.Node:
        if have == want:
            return value
        return self._call(like, aten.slice.Tensor, value, 2, want[0] - have[0], want[1] - have[0])

    def _call(self, like: fx.Node, target: Any, *arguments: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.end):
            node = self.program.graph.call_function(target, arguments)
        node.meta["facts"] = self.program.facts(like).but(scope=self.program.facts(self.end).scope)
        return node


class _Geometry(NamedTuple):
    """The arguments of a convolution behind its input, and kernel, stride and padding along the rows."""

    arguments: tuple[Any, ...]
    kernel: int
    stride: int
    padding: int

    def rows_read(self, rows: Rows) -> Rows:
        """What rows of its result read, beyond the image's border where there is padding."""
        return (
            rows[0] * self.stride - self.padding,
            (rows[1] - 1) * self.stride - self.padding + self.kernel,
        )


def _geometry(program: Program, node: fx.Node) -> _Geometry:
    arguments: tuple[Any, ...] = (*node.args[1:], *_DEFAULTS[len(node.args) - 1 :])
    weight, _, stride, padding, *_ = arguments
    return _Geometry(arguments, int(program.facts(weight).shape[2]), stride[0], padding[0])


def _read_by_doubling(rows: Rows, height: int) -> Rows:
    """What rows of an image of twice the height are interpolated from."""
    return max((rows[0] - 1) // 2, 0), min((rows[1] - 2) // 2 + 2, height)


def _rows_read(program: Program, nodes: list[fx.Node], end: fx.Node, rows: Rows) -> dict[fx.Node, Rows]:
    """For some rows of the end: those of each value of the decoder, and of each source, that are read."""
    needed = {end: rows}
    for node in reversed(nodes):
        if node not in needed:
            continue
        for source in _images(program, node):
            height = _height(program, source)
            read = needed[node]
            if node.target is aten.conv2d.default:
                first, last = _geometry(program, node).rows_read(read)
                read = (max(first, 0), min(last, height))
            elif node.target in _DOUBLINGS:
                read = _read_by_doubling(read, height)
            known = needed.get(source, read)
            needed[source] = (min(known[0], read[0]), max(known[1], read[1]))
    return needed


def _ends(nodes: list[fx.Node]) -> list[fx.Node]:
    """The nodes that others read too."""
    own = set(nodes)
    return [node for node in nodes if any(user not in own for user in node.users)]


def _are_joined(ends: list[fx.Node]) -> bool:
    """Whether these are strips already."""
    users = {user for end in ends for user in end.users}
    return len(ends) > 1 and len(users) == 1 and users.pop().target is aten.cat.default


def _is_local(program: Program, node: fx.Node) -> bool:
    """Whether rows of a node's value are computed from rows nearby."""
    images = _images(program, node)
    if not images or any(len(program.facts(image).shape) != 4 for image in images):
        return False
    heights = {_height(program, image) for image in images}
    if node.op == "call_module":
        return isinstance(program.module(node), BatchNorm2d)
    if node.target is aten.conv2d.default:
        dilation: Any = _geometry(program, node).arguments[4]
        return len(images) == 1 and dilation[0] == 1
    if node.target in _DOUBLINGS:
        return (
            heights == {_height(program, node) // 2}
            and node.args[2] is False
            and _height(program, node) % 2 == 0
        )
    if node.target is aten.cat.default:
        return node.args[1:] == (1,) and heights == {_height(program, node)}
    return node.target in _BY_PIXEL and heights == {_height(program, node)}


def _images(program: Program, node: fx.Node) -> list[fx.Node]:
    """The images that a node reads, held ones too; weights, and what is held once for all rows, are none."""
    weights = node.args[1:] if node.target is aten.conv2d.default else ()
    return [
        source
        for source in node.all_input_nodes
        if source.op != "get_attr" or (source not in weights and _has_rows(program.facts(source).shape))
    ]


def _has_rows(shape: tuple[int | str, ...]) -> bool:
    return len(shape) > 1 and shape[-2] != 1


def _image(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _height(program: Program, node: fx.Node) -> int:
    return int(program.facts(node).shape[2])
