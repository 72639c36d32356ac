"""y = scale_o * (B_w(w) (*) B_a(x)) + bias_o

replaces y = w (*) x + bias: the float weight becomes the latent weight under its own name, and a batch norm behind
the convolution stays. `mattecompress.modules.binary` has the equations of each method; where the program adds a bias
in front of a convolution (`shift-activations`), that is its threshold. The first and the last
convolution stay float as in BiVM, whose Table II also counts the squeeze-and-excitation convolutions as one-bit.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, ClassVar, Literal

from torch import fx

from mattecompress.binarization.binarizable import Exclusions, geometry_of, is_shifted, layer_path, weight_of
from mattecompress.facts import Precision
from mattecompress.modules.binary import THRESHOLDED, BinaryConv2d, BinaryConvConfig, Method
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import AbsentParameter, Program, namespace

LISTED = 6


@dataclass(frozen=True)
class Binarize(Pass):
    """Make float convolutions one-bit and trainable; afterwards those left in float have a reason.

    method: bnn, dorefa, recu, react or bimatting.
    exclude: patterns of layer paths that stay float, such as `project_mat.*`.
    exclude_first: layers that read a frame through no other convolution stay float.
    exclude_last: layers with no other convolution between them and an output, states aside, stay float.
    border: what padded taps count: 0, or 1 for +1.
    absent: patterns of layers that count as one-bit where the capture left them out, for the size of the whole
        model; one that matches nothing is no error, since a model may lack the layer.
    activations: bits of an activation; 2 with dorefa only.
    """

    method: Method
    exclude: tuple[str, ...] = ()
    exclude_first: bool = True
    exclude_last: bool = True
    border: Literal[0, 1] = 0
    absent: tuple[str, ...] = ()
    activations: Literal[1, 2] = 1
    name: ClassVar[str] = "binarize"

    def requires(self, program: Program) -> None:
        """The method has such activations, nothing is lowered yet, and every pattern matches.

        Something is left to binarize, or was before.
        """
        expect(
            self.activations == 1 or self.method == "dorefa",
            f"method={self.method} has one-bit activations only: activations=2 needs method=dorefa",
        )
        lowered = [node.name for node in program.operations() if namespace(node) == "matte"]
        expect(not lowered, f"%{next(iter(lowered), '')} is lowered already: binarize before lowering")
        self._exclusions.check(program)
        reasons = self._exclusions.float_reasons(program)
        expect(
            None in reasons.values() or program.called_modules(BinaryConv2d),
            f"no float convolution can become one-bit: {_list_floats(reasons) or 'the program has none'}; "
            "binarize the program as it was captured",
        )

    def ensures(self, program: Program) -> None:
        """Every float convolution has a reason."""
        left = [
            node.name for node, reason in self._exclusions.float_reasons(program).items() if reason is None
        ]
        expect(not left, f"float convolutions survived: {', '.join(left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """One module for each weight; convolutions that share a weight share the module."""
        reasons = self._exclusions.float_reasons(program)
        chosen = [node for node, reason in reasons.items() if reason is None]
        paths: dict[fx.Node, str] = {}
        for node in chosen:
            weight = weight_of(node)
            if weight not in paths:
                paths[weight] = _module_path(program, node)
                program.add_module(paths[weight], self._module(program, node))
            _call_module(program, node, paths[weight], Precision(1, self.activations))
        if not chosen:
            return None
        known = {part.name for part in program.source.absent}
        absent = chain.from_iterable(self._count_absent(part, known) for part in program.source.absent)
        program.source = replace(program.source, absent=tuple(absent))
        floats = _list_floats(reasons)
        return f"{len(chosen)} of {len(reasons)} convolutions in one bit{floats and f'; float: {floats}'}"

    @property
    def _exclusions(self) -> Exclusions:
        return Exclusions(self.exclude, self.exclude_first, self.exclude_last)

    def _count_absent(self, part: AbsentParameter, known: set[str]) -> list[AbsentParameter]:
        """A weight that the capture left out, in one bit, and what its layer would learn beside it and what is known."""
        path, _, leaf = part.name.rpartition(".")
        counted = leaf == "weight" and any(fnmatchcase(path, pattern) for pattern in self.absent)
        if not counted or len(part.shape) != 4:
            return [part]
        outputs, inputs = part.shape[:2]
        binary = replace(part, bits=1)
        if self.method == "recu":
            return [binary, AbsentParameter(f"{path}.scale", (outputs, 1, 1))]
        if self.method in THRESHOLDED and f"{path}_input.bias" not in known:
            return [binary, AbsentParameter(f"{path}.activation_bias", (inputs,))]
        return [binary]

    def _module(self, program: Program, node: fx.Node) -> BinaryConv2d:
        weight = program.tensor(weight_of(node))
        bias, stride, padding, dilation, groups = geometry_of(node)
        config = BinaryConvConfig(
            inputs=weight.shape[1] * groups,
            outputs=weight.shape[0],
            kernel=(weight.shape[2], weight.shape[3]),
            stride=_pair(stride),
            padding=_pair(padding),
            dilation=_pair(dilation),
            groups=groups,
            bias=bias is not None,
            method=self.method,
            border=self.border,
            threshold=not (self.method in THRESHOLDED and is_shifted(program, node)),
            activations=self.activations,
        )
        module = BinaryConv2d.from_float(config, weight, None if bias is None else program.tensor(bias))
        return module.train(program.graph_module.training)


def _pair(value: Any) -> tuple[int, int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return int(sizes[0]), int(sizes[-1])


def _module_path(program: Program, node: fx.Node) -> str:
    """The layer's path if nothing else lives there; else one beside the weight."""
    weight = str(weight_of(node).target)
    owner, _, leaf = weight.rpartition(".")
    beside = [name for name in program.state_dict() if name.startswith(f"{owner}.")]
    alone = owner and leaf == "weight" and set(beside) <= {weight, f"{owner}.bias"}
    return owner if alone else f"{weight}_conv"


def _call_module(program: Program, node: fx.Node, path: str, precision: Precision) -> None:
    with program.graph.inserting_after(node):
        call = program.graph.call_module(path, (node.args[0],))
    call.meta["facts"] = program.facts(node).but(precision=precision)
    program.replace(node, call)


def _list_floats(reasons: dict[fx.Node, str | None]) -> str:
    floats = [f"{layer_path(node)} ({reason})" for node, reason in reasons.items() if reason]
    more = f" and {len(floats) - LISTED} more" if len(floats) > LISTED else ""
    return ", ".join(floats[:LISTED]) + more
