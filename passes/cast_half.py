"""y = f(x, W)  becomes  y = half(f(half(x), half(W)))

Inputs and outputs keep the types that the program had; they are cast where they are read and returned. What float16
cannot carry stays in float32, with all that it is computed from back to the convolutions before it:

- a difference of two computed tensors, x*y - m(x)*m(y) say, which cancels all but the last of 11 bits;
- a quotient by a computed tensor, such as cov / (var + 1e-5), since 1e-5 is below float16's smallest normal number;
- what is computed from either, up to the next convolution;
- what names its own type, as `softmax(dtype=torch.float32)` does.

In RVM that is the guided filter. A depthwise convolution is a filter of the same image and no boundary there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.operands import arguments_of
from mattecompress.facts import Precision
from mattecompress.pipeline import Context, Pass, PreconditionError, expect
from mattecompress.program import Program, namespace

aten = torch.ops.aten
conv2d, to_dtype = aten.conv2d.default, aten.to.dtype
FLOATS = (torch.float16, torch.float32)
HALF_PRECISION = Precision(16, 16)


@dataclass(frozen=True)
class CastHalf(Pass):
    """Make weights and activations float16; afterwards what computes in float32 must, or is excluded.

    exclude: patterns of layer paths that compute in float32, such as `project_mat*`.
    """

    exclude: tuple[str, ...] = ()
    name: ClassVar[str] = "cast-half"

    def requires(self, program: Program) -> None:
        """The program is float: no module is called, nothing is lowered; its weights are within float16's range."""
        for node in program.operations():
            if node.op == "call_module":
                kind = type(program.module(node)).__name__
                raise PreconditionError(f"@{node.target} is {kind}: run fold-batch-norm before")
            expect(namespace(node) != "matte", f"%{node.name} is lowered: run cast-half on the float program")
        limit = torch.finfo(torch.float16).max
        for node in _half_constants(program, self._in_half(program)):
            size = program.tensor(node).abs().max().item()
            expect(
                size <= limit,
                f"@{node.target} holds {size:.6g} and float16 ends at {limit:.0f}: exclude its layer",
            )

    def ensures(self, program: Program) -> None:
        """Only float32 operations that must be so or are excluded are left, and casts."""
        left = [node.name for node in self._in_half(program) if program.facts(node).dtype is torch.float32]
        expect(not left, f"still in float32: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Cast constants once, and activations where the type changes."""
        chosen = self._in_half(program)
        if not any(program.facts(node).dtype is torch.float32 for node in chosen):
            return None
        writer = _Writer(program, chosen)
        kept = [node for node in _float_operations(program) if node not in chosen]
        for node in _float_operations(program):
            writer.cast_operands(node)
        writer.cast_outputs()
        rest = f"; {len(kept)} in float32: {_list(kept)}" if kept else ""
        return f"{len(chosen)} operations in float16{rest}"

    def _in_half(self, program: Program) -> set[fx.Node]:
        kept = _delicate(program)
        return {
            node
            for node in _float_operations(program)
            if node not in kept
            and arguments_of(node).get("dtype") is None
            and not any(fnmatchcase(program.facts(node).scope, pattern) for pattern in self.exclude)
        }


class _Writer:
    """Casts what nodes read; every cast is made once."""

    def __init__(self, program: Program, half: set[fx.Node]) -> None:
        self.program, self.half = program, half
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """The type that a node will have."""
        return torch.float16 if node in self.half else self.program.facts(node).dtype

    def cast_operands(self, node: fx.Node) -> None:
        """Let an operation read the type that it computes in."""
        wanted = torch.float16 if node in self.half else torch.float32
        for source in node.all_input_nodes:
            if self.dtype(source) in FLOATS and self.dtype(source) is not wanted:
                node.replace_input_with(source, self.cast(source, wanted))
        if node.target is conv2d and node in self.half:
            node.meta["facts"] = self.program.facts(node).but(precision=HALF_PRECISION)

    def cast_outputs(self) -> None:
        """Return the types that the program had."""
        (output,) = self.program.graph.find_nodes(op="output")
        for source in output.all_input_nodes:
            if source in self.half:
                output.replace_input_with(source, self.cast(source, torch.float32))

    def cast(self, source: fx.Node, wanted: torch.dtype) -> fx.Node:
        """A node's value in another type: a constant of its own, or a cast right after the node."""
        if (source, wanted) not in self.casts:
            self.casts[source, wanted] = (
                self.constant(source) if source.op == "get_attr" else self.call(source, wanted)
            )
        return self.casts[source, wanted]

    def constant(self, source: fx.Node) -> fx.Node:
        value = self.program.tensor(source)
        stored: Tensor = value.detach().half()
        trained = isinstance(value, nn.Parameter)
        alone = all(user in self.half for user in source.users)
        name = str(source.target) if alone else self.program.free_path(f"{source.target}_half")
        return self.program.constant(name, nn.Parameter(stored) if trained else stored, replaces=alone)

    def call(self, source: fx.Node, wanted: torch.dtype) -> fx.Node:
        with self.program.graph.inserting_after(source):
            node = self.program.graph.call_function(to_dtype, (source, wanted))
        node.meta["facts"] = self.program.facts(source).but(dtype=wanted, precision=None)
        return node


def _float_operations(program: Program) -> list[fx.Node]:
    """Operations on floating-point tensors that yield such, casts between them aside; what makes one anew is none."""
    return [
        node
        for node in program.operations()
        if program.facts(node).dtype in FLOATS
        and node.target is not to_dtype
        and any(program.facts(source).dtype in FLOATS for source in node.all_input_nodes)
    ]


def _half_constants(program: Program, half: set[fx.Node]) -> list[fx.Node]:
    sources = dict.fromkeys(source for node in half for source in node.all_input_nodes)
    return [node for node in sources if node.op == "get_attr" and program.facts(node).dtype in FLOATS]


def _delicate(program: Program) -> set[fx.Node]:
    """What float16 cannot carry: see the module's docstring."""
    seeds = [node for node in _float_operations(program) if _cancels(node)]
    after = _reach(program, seeds, lambda node: node.users)
    return _reach(program, after, lambda node: node.all_input_nodes)


def _cancels(node: fx.Node) -> bool:
    computed = [isinstance(argument, fx.Node) and argument.op != "get_attr" for argument in node.args[:2]]
    return (node.target is aten.sub.Tensor and all(computed)) or (
        node.target is aten.div.Tensor and computed[1]
    )


def _reach(
    program: Program, start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """The nodes that are reached from `start` through anything but convolutions that mix channels."""
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node.op != "call_function" or node in found or _mixes_channels(program, node):
            continue
        found.add(node)
        waiting += neighbours(node)
    return found


def _mixes_channels(program: Program, node: fx.Node) -> bool:
    return node.target is conv2d and program.facts(node.args[1]).shape[1] != 1  # type: ignore[arg-type]


def _list(nodes: list[fx.Node]) -> str:
    scopes = dict.fromkeys(node.meta["facts"].scope or node.name for node in nodes)
    return ", ".join(scopes)
