"""Where a program departs from another, node by node: the signal to noise ratio of each value against its counterpart.

    SQNR = 10 log10( sum r^2 / sum (v - r)^2 )   over all elements, frames and clips, r of the reference, v of the program

measured twice. Accumulated: both programs run, each on its own states. Own: every value that has a counterpart is given
the counterpart's to whoever reads it, so that a node's error is only what it adds itself, or what was added since the
nearest values that are aligned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mattecompress.errors import UserError
from mattecompress.inspection.alignment import Alignment, align
from mattecompress.interface import Clip
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.error import decibels
from mattecompress.running.feed import Feed
from mattecompress.running.watching import Watched

Values = dict[str, Tensor]


class NoReferenceError(UserError):
    """There is nothing to measure errors against."""


@dataclass
class NodeError:
    """Sums of squares over what was measured: of the reference's values, and of both kinds of differences.

    reference: the counterpart's name. elements: numbers compared.
    """

    reference: str
    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    own_noise: float = 0.0

    @property
    def error(self) -> float:
        """The accumulated error relative to the signal, as a ratio of root mean squares; 0 where both are equal."""
        return math.sqrt(_ratio(self.noise, self.signal))

    @property
    def own_error(self) -> float:
        """The same of the error that is the node's own."""
        return math.sqrt(_ratio(self.own_noise, self.signal))

    @property
    def sqnr(self) -> float | None:
        """Accumulated, in dB; None where there is no error."""
        return decibels(self.error**2) if self.noise else None

    @property
    def own_sqnr(self) -> float | None:
        """Of the node's own error, in dB; None where there is none."""
        return decibels(self.own_error**2) if self.own_noise else None


@dataclass
class _Run:
    """A program on a clip: its watched form, and the states it is at."""

    watched: Watched
    states: Values = field(default_factory=dict)

    def step(self, frame: Mapping[str, Tensor]) -> None:
        outputs = self.watched.outputs({**frame, **self.states})
        self.states = {pair.input: outputs[pair.output] for pair in self.watched.program.states}


@torch.no_grad()
def measure_errors(
    program: Program, reference: Program, clips: Sequence[Clip], alignment: Alignment | None = None
) -> dict[str, NodeError]:
    """The error of each operation of a program that has a counterpart, by name, in order.

    program, reference: of the same fixed size, with the same inputs and states.
    clips: (T,3,H,W) float32 in 0..1 each, or as `mattecompress.running.feed.Feed` takes them; states are carried
        through each.
    alignment: of the reference and the program, where it is known already.

    Raises:
        CalibrationError: clips do not fit.
        NoReferenceError: the two take different inputs.
    """
    _require_same_inputs(program, reference)
    counterparts = (alignment or align(reference, program)).counterparts
    errors = {
        node.name: NodeError(counterparts[node.name])
        for node in program.operations()
        if node.name in counterparts
    }
    wanted = {error.reference for error in errors.values()}
    expected: Values = {}

    def keep(node: fx.Node, value: Tensor) -> Tensor:
        if node.name in wanted and value.is_floating_point():
            expected[node.name] = value
        return value

    def compare(own: bool) -> Callable[[fx.Node, Tensor], Tensor]:
        def visit(node: fx.Node, value: Tensor) -> Tensor:
            error = errors.get(node.name)
            target = expected.get(error.reference) if error else None
            if error is None or target is None or target.shape != value.shape:
                return value
            noise = float((value.double() - target).square().sum())
            if own:
                error.own_noise += noise
                return target.to(value.dtype)
            error.elements += value.numel()
            error.noise += noise
            error.signal += float(target.double().square().sum())
            return value

        return visit

    feed = Feed(program, clips)
    for clip in range(len(feed)):
        zeros = feed.zeros(clip)
        exact, actual, forced = (
            _Run(watched, dict(zeros))
            for watched in (
                Watched(reference, keep),
                Watched(program, compare(own=False)),
                Watched(program, compare(own=True)),
            )
        )
        for index in range(feed.length(clip)):
            frame = feed.frame(clip, index)
            forced.states = exact.states
            for run in (exact, actual, forced):
                run.step(frame)
            expected.clear()
    return {name: error for name, error in errors.items() if error.elements}


def without_quantizers(program: Program) -> Program:
    """The same program in float, its nodes with the same names.

    Raises:
        NoReferenceError: it has no quantizers that could be left out.
    """
    exact = program.clone()
    calls = exact.called_modules(FakeQuantize)
    if not calls:
        raise NoReferenceError(
            f"{program.name} is {program.level.value} and holds no float form of itself: "
            "name the program it came from with --reference"
        )
    for call in calls:
        call.replace_all_uses_with(call.all_input_nodes[0])
        exact.graph.erase_node(call)
    exact.graph_module.recompile()
    return exact


def _require_same_inputs(program: Program, reference: Program) -> None:
    ours, theirs = _describe_inputs(program), _describe_inputs(reference)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            have, want = (inputs.get(name, "absent") for inputs in (ours, theirs))
            raise NoReferenceError(
                f"input {name} is {have} in {program.name} and {want} in its reference {reference.name}: "
                "name the program it came from"
            )


def _describe_inputs(program: Program) -> dict[str, str]:
    states = {pair.input for pair in program.states}
    return {
        str(node.target): f"{'state ' if node.target in states else ''}{program.facts(node).type_text}"
        for node in program.inputs
    }


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal else float(noise > 0)
