"""The first pass of a pipeline whose program leaves the allowed error, and the first node of it that does.

    error(p) = max over outputs of  mean |p - given|     over a clip, states carried

Passes are run one after the other and measured. Within the pass that was found, the programs before (b) and after (a)
are mixed: a mixture k takes the values of the first k aligned nodes from a, and computes the others as b does. Mixture 0
is b, within the error; the last is a, outside of it. Bisecting k finds a node at which the error is left: b with the
values of all nodes before it is still good.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress.analysis.propagation import program_symbols
from mattecompress.inspection.alignment import align
from mattecompress.inspection.error import Values
from mattecompress.interface import Clip, frame_node
from mattecompress.pipeline import Context, Pipeline
from mattecompress.preparation import fix_size
from mattecompress.program import Level, Program
from mattecompress.running.feed import Feed
from mattecompress.running.watching import Watched
from mattecompress.text import print_node

Outputs = list[Values]
Step = Callable[[Mapping[str, Tensor]], Values]


@dataclass(frozen=True)
class StepError:
    """A pass that was run: the error of its program's outputs, and seconds."""

    text: str
    error: float
    seconds: float


@dataclass(frozen=True)
class Culprit:
    """The node at which the error is left.

    before: its name before the pass. after: the node that stands for it, behind those that compute for it alone what
        nothing before stands for; with their lines of text.
    error: with its value and those before it; without: with those before it alone.
    """

    before: str
    after: tuple[str, ...]
    lines: tuple[str, ...]
    region: str
    error: float
    without: float


@dataclass(frozen=True)
class Bisection:
    """Every pass that was run, and the number (from 1) of the last, if it left the allowed error, with its node.

    culprit is None where no pass did, or where the error is in no node that both programs have.
    """

    steps: tuple[StepError, ...]
    number: int | None
    culprit: Culprit | None

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists; an error that is not finite is null."""
        document = asdict(self)
        for entry in (*document["steps"], *([document["culprit"]] if self.culprit else [])):
            entry.update((key, None) for key in ("error", "without") if not math.isfinite(entry.get(key, 0)))
        return document


def bisect(
    program: Program,
    pipeline: Pipeline,
    clip: Clip,
    max_error: float,
    context: Context | None = None,
    report: Callable[[StepError], None] = lambda step: None,
) -> Bisection:
    """Find what leaves the allowed error.

    clip: (T,3,H,W) float32 in 0..1, or as `mattecompress.running.feed.Feed` takes it, at a size that the program takes.
    context: for the passes.
    report: called after each pass.

    Raises:
        PreconditionError, PassError: as the passes.
        CalibrationError: the clip does not fit.
    """
    frames = clip if isinstance(clip, Tensor) else clip[str(frame_node(program).target)]
    size = (int(frames.shape[2]), int(frames.shape[3]))
    context = context or Context()
    if context.teacher is None and program.level is Level.FLOAT:
        context = replace(context, teacher=program)
    fixed = _fixed(program, size)
    given = run_clip(fixed, clip)
    steps: list[StepError] = []
    for number, step in enumerate(pipeline.passes, start=1):
        start = time.perf_counter()
        result = Pipeline((step,)).run(program, context)
        after, seconds = _fixed(result, size), time.perf_counter() - start
        error = output_error(run_clip(after, clip), given)
        steps.append(StepError(str(step), error, seconds))
        report(steps[-1])
        if not error <= max_error:
            culprit = _Mixtures(fixed, after, clip, given).find(max_error)
            return Bisection(tuple(steps), number, culprit)
        program, fixed = result, after
    return Bisection(tuple(steps), None, None)


def output_error(found: Outputs, expected: Outputs) -> float:
    """The mean absolute difference over all frames, of the output in which it is largest; infinite if it is no number."""
    names = found[0].keys() & expected[0].keys()
    errors = [
        torch.stack(
            [
                (one[name].double() - other[name]).abs().mean()
                for one, other in zip(found, expected, strict=True)
            ]
        ).mean()
        for name in names
    ]
    worst = float(torch.stack(errors).max())
    return worst if math.isfinite(worst) else math.inf


@torch.no_grad()
def run_clip(program: Program, clip: Clip, step: Step | None = None) -> Outputs:
    """The outputs that are no states, of each frame; states are carried.

    step: computes all outputs from all inputs; the program itself unless given.

    Raises:
        CalibrationError: the clip does not fit.
    """
    feed = Feed(program, [clip])
    states, outputs = feed.zeros(0), []
    carried = {pair.output: pair.input for pair in program.states}
    for index in range(feed.length(0)):
        inputs = {**feed.frame(0, index), **states}
        values = step(inputs) if step else program.run(**inputs)
        states = {carried[name]: value for name, value in values.items() if name in carried}
        outputs.append({name: value for name, value in values.items() if name not in carried})
    return outputs


class _Mixtures:
    """Programs that take the values of their first nodes from another."""

    def __init__(self, before: Program, after: Program, clip: Clip, given: Outputs) -> None:
        self.before, self.after, self.clip, self.given = before, after, clip, given
        self.alignment = align(before, after)
        successors = {old: new for new, old in self.alignment.counterparts.items()}
        nodes = (node.name for node in before.operations())
        self.pairs = [(name, successors[name]) for name in nodes if name in successors]

    def find(self, max_error: float) -> Culprit | None:
        """Bisect between the mixture of none, which is good, and that of all nodes; None if that is good as well."""
        good, bad = 0, len(self.pairs)
        errors = {bad: self.error(bad)}
        if errors[bad] <= max_error:
            return None
        while bad - good > 1:
            middle = (good + bad) // 2
            errors[middle] = self.error(middle)
            good, bad = (middle, bad) if errors[middle] <= max_error else (good, middle)
        without = errors[good] if good in errors else self.error(good)
        return self.culprit(self.pairs[bad - 1], errors[bad], without)

    def error(self, count: int) -> float:
        """Of the mixture that takes so many values from the program after."""
        taken = {new: old for old, new in self.pairs[:count]}
        values: Values = {}

        def keep(node: fx.Node, value: Tensor) -> Tensor:
            if node.name in taken:
                values[taken[node.name]] = value
            return value

        def exchange(node: fx.Node, value: Tensor) -> Tensor:
            other = values.get(node.name)
            return value if other is None or other.shape != value.shape else other.to(value.dtype)

        after, before = Watched(self.after, keep), Watched(self.before, exchange)

        def step(inputs: Mapping[str, Tensor]) -> Values:
            after.outputs(inputs)
            return before.outputs(inputs)

        return output_error(run_clip(self.before, self.clip, step), self.given)

    def culprit(self, pair: tuple[str, str], error: float, without: float) -> Culprit:
        old, new = pair
        nodes = {node.name: node for node in self.after.operations()}
        between = self.between(nodes[new])
        lines = tuple(print_node(self.after, node) for node in between)
        region = self.after.facts(nodes[new]).region or ""
        return Culprit(old, tuple(node.name for node in between), lines, region, error, without)

    def between(self, node: fx.Node) -> list[fx.Node]:
        """A node, and what computes for it from values that have counterparts, in order."""
        found, waiting = {node}, [node]
        while waiting:
            sources = set(waiting.pop().all_input_nodes) - found
            new = [
                source
                for source in sources
                if source.op.startswith("call") and source.name not in self.alignment.counterparts
            ]
            found.update(new)
            waiting += new
        return [each for each in self.after.operations() if each in found]


def _fixed(program: Program, size: tuple[int, int]) -> Program:
    return fix_size(program, size) if program_symbols(program) else program
