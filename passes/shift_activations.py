"""y = W (*) x + c, z = a(y)  becomes  y = W (*) (x + b) + c, z = a'(y + b')

b and b' are learnable, one for each channel, from 0. In front of a convolution b shifts where one bit will turn; behind
one, b' shifts its activation a, and a' is a PReLU where a is a ReLU or PReLU, else a itself. A batch norm between the
convolution and its activation stays.

Source: ReActNet (Liu et al. 2020), equations (3) and (4), in the form that BiMatting has: no second bias behind PReLU.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx, nn

from mattecompress.binarization.binarizable import (
    Exclusions,
    float_convolutions,
    is_binary,
    is_shifted,
    layer_path,
    weight_of,
)
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import AbsentParameter, Level, Program

aten = torch.ops.aten
ACTIVATIONS = (aten.relu.default, aten.prelu.default, aten.sigmoid.default, aten.tanh.default)


@dataclass(frozen=True)
class ShiftActivations(Pass):
    """Let layers learn their activations' thresholds and bends; afterwards each chosen layer reads a shifted image.

    exclude, exclude_first, exclude_last: as of `binarize`, layers whose input is left alone.
    behind: patterns of layers whose own activation is shifted too; one that matches nothing is no error, since a model
        may lack the layer. What the capture left out of these layers counts as shifted, for the size of the model.
    slope: of a fresh PReLU below 0.
    """

    exclude: tuple[str, ...] = ()
    exclude_first: bool = True
    exclude_last: bool = True
    behind: tuple[str, ...] = ()
    slope: float = 0.25
    name: ClassVar[str] = "shift-activations"

    def requires(self, program: Program) -> None:
        """Nothing is lowered, and patterns of layers to exclude match some."""
        expect(
            program.level is not Level.LOWERED, "the program is lowered: shift activations before lowering"
        )
        self._exclusions.check(program)

    def ensures(self, program: Program) -> None:
        """No chosen layer, and no chosen activation, is without a bias."""
        left = [*self._layers(program), *self._activations(program)]
        expect(not left, f"no bias at {', '.join(node.name for node in left)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """Layers, then activations, then what was not captured."""
        layers, activations = self._layers(program), self._activations(program)
        if not layers and not activations:
            return None
        for layer in layers:
            _shift(program, layer, f"{_name_of(layer)}_input")
        for activation, name in activations.items():
            _shift(program, activation, f"{name}_output")
            if activation.target is aten.relu.default:
                _bend(program, activation, f"{name}_output", self.slope)
        program.source = replace(
            program.source, absent=(*program.source.absent, *self._absent(program.source.absent))
        )
        return f"{len(layers)} layers and {len(activations)} activations shifted"

    @property
    def _exclusions(self) -> Exclusions:
        return Exclusions(self.exclude, self.exclude_first, self.exclude_last)

    def _layers(self, program: Program) -> list[fx.Node]:
        layers = self._exclusions.layers(program)
        return [node for node in layers if not is_shifted(program, node) and not is_binary(program, node)]

    def _activations(self, program: Program) -> dict[fx.Node, str]:
        """Chosen activations without a bias, with the names of their layers."""
        layers = [node for node in float_convolutions(program) if weight_of(node).op == "get_attr"]
        behind = {_activation_of(program, node): _name_of(node) for node in layers if self._names(node)}
        return {
            node: name for node, name in behind.items() if node is not None and not is_shifted(program, node)
        }

    def _names(self, layer: fx.Node) -> bool:
        return any(fnmatchcase(layer_path(layer), pattern) for pattern in self.behind)

    def _absent(self, parts: tuple[AbsentParameter, ...]) -> list[AbsentParameter]:
        """What the layers that were not captured would learn."""
        found = []
        for part in parts:
            path, _, leaf = part.name.rpartition(".")
            chosen = any(fnmatchcase(path, pattern) for pattern in self.behind)
            if chosen and leaf == "weight" and len(part.shape) == 4:
                outputs, inputs = part.shape[:2]
                found += [
                    AbsentParameter(f"{path}_input.bias", (inputs,)),
                    AbsentParameter(f"{path}_output.bias", (outputs,)),
                    AbsentParameter(f"{path}_output.slope", (outputs,)),
                ]
        return found


def _name_of(layer: fx.Node) -> str:
    """The layer's path, with the name of its weight where a module may have several."""
    leaf = str(weight_of(layer).target).rpartition(".")[2]
    return layer_path(layer) if leaf == "weight" else f"{layer_path(layer)}_{leaf}"


def _activation_of(program: Program, layer: fx.Node) -> fx.Node | None:
    """The activation that alone reads the layer, or the batch norm behind it."""
    node = layer
    for _ in range(2):
        if len(node.users) != 1:
            return None
        (node,) = node.users
        if node.target in ACTIVATIONS:
            return node
        if node.op != "call_module" or not isinstance(program.module(node), BatchNorm2d):
            return None
    return None


def _shift(program: Program, node: fx.Node, path: str) -> None:
    """Add a bias of its own to what a node reads first; calls that share a path share the bias."""
    (x, *_) = node.all_input_nodes
    channels = int(program.facts(x).shape[1])
    bias = _parameter(program, f"{path}.bias", torch.zeros(1, channels, 1, 1))
    with program.graph.inserting_before(node):
        shifted = program.graph.call_function(aten.add.Tensor, (x, bias))
    shifted.meta["facts"] = program.facts(x).but(
        precision=None, scope=program.facts(node).scope, region=program.facts(node).region
    )
    node.update_arg(0, shifted)


def _bend(program: Program, relu: fx.Node, path: str, slope: float) -> None:
    channels = int(program.facts(relu).shape[1])
    weight = _parameter(program, f"{path}.slope", torch.full((channels,), slope))
    with program.graph.inserting_after(relu):
        prelu = program.graph.call_function(aten.prelu.default, (relu.args[0], weight))
    program.replace(relu, prelu)


def _parameter(program: Program, name: str, value: torch.Tensor) -> fx.Node:
    """The node of a parameter, which may be there already."""
    readers = (node for node in program.graph.nodes if node.op == "get_attr" and node.target == name)
    return next(readers, None) or program.constant(name, nn.Parameter(value))
