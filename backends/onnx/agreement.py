"""Same program, same answer: ONNX Runtime against the reference, on random frames with the states carried."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mattecompress.analysis.propagation import program_symbols
from mattecompress.backends import Artifact
from mattecompress.errors import InternalError
from mattecompress.facts import evaluate_size
from mattecompress.program import Level, Program
from mattecompress.running.stream import Run

FLOAT_TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 1e-3
HALF_TOLERANCE = 2.0**-8  # eight times the last place of a float16
NUDGE = 1e-5
NUDGE_FACTOR = 3
SYMBOL_SIZES = (1, 5, 7, 6)

Frame = dict[str, Tensor]


class AgreementError(InternalError):
    """An artifact does not compute what its program computes."""


@dataclass(frozen=True)
class Agreement:
    """How one output of an artifact differs from the program's, over all compared frames.

    peak: largest magnitude of the program's own values.
    worst: largest absolute difference.
    relative: root mean square of the difference over that of the program's values.
    """

    output: str
    peak: float
    worst: float
    relative: float


def compare(program: Program, artifact: Artifact, frames: int = 2, seed: int = 0) -> tuple[Agreement, ...]:
    """Run program and artifact side by side, each feeding back its own states, on inputs uniform in 0..1.

    Symbolic sizes are tried at small values.
    """
    drawn = _draw(program, frames, seed)
    return _measure(_stream(program, program.run, drawn), _stream(program, artifact.run, drawn))


def require_agreement(program: Program, artifact: Artifact, seed: int = 0) -> None:
    """Compare one frame, and accept only rounding.

    A float program may differ by 1e-4 of an output's peak (at least of 1) anywhere. A program that rounds to codes or
    signs turns a difference in the last place into a step, and steps breed steps: there the root mean square may
    reach 1e-3, or three times what nudging the inputs by up to 1e-5 does to the program itself. One that computes in
    float16 rounds each operation, and may reach 2**-8.

    Raises:
        AgreementError: an output differs by more.
    """
    half = any(program.facts(node).dtype is torch.float16 for node in program.operations())
    rounds = half or program.level is not Level.FLOAT
    least = HALF_TOLERANCE if half else ROUNDED_TOLERANCE
    drawn = _draw(program, 1, seed)
    expected = _stream(program, program.run, drawn)
    agreements = _measure(expected, _stream(program, artifact.run, drawn))
    moved = _stream(program, program.run, _nudge(drawn, seed)) if rounds else expected
    for agreement, natural in zip(agreements, _measure(expected, moved), strict=True):
        if rounds:
            fits = agreement.relative <= max(least, NUDGE_FACTOR * natural.relative)
        else:
            fits = agreement.worst <= FLOAT_TOLERANCE * max(1.0, agreement.peak)
        if not fits:
            raise AgreementError(
                f"{program.name}: output {agreement.output} differs from the reference by {agreement.worst:.3g} "
                f"at most and {agreement.relative:.3g} relative"
            )


def _draw(program: Program, frames: int, seed: int) -> list[Frame]:
    """Inputs that are no states, for each frame; the first also has zero states."""
    generator = torch.Generator().manual_seed(seed)
    symbols = dict(zip(program_symbols(program), SYMBOL_SIZES, strict=False))
    states = {pair.input for pair in program.states}
    drawn: list[Frame] = [{} for _ in range(frames)]
    for node in program.inputs:
        name, facts = str(node.target), program.facts(node)
        shape = [int(evaluate_size(size, symbols)) for size in facts.shape]
        if name in states:
            drawn[0][name] = torch.zeros(shape, dtype=facts.dtype)
            continue
        for frame in drawn:
            frame[name] = torch.rand(shape, generator=generator).to(facts.dtype)
    return drawn


def _nudge(drawn: list[Frame], seed: int) -> list[Frame]:
    generator = torch.Generator().manual_seed(seed + 1)
    return [
        {name: value + NUDGE * torch.rand(value.shape, generator=generator) for name, value in frame.items()}
        for frame in drawn
    ]


@torch.no_grad()
def _stream(program: Program, run: Run, drawn: list[Frame]) -> list[Frame]:
    """The outputs of every frame; states go from each to the next."""
    outputs: list[Frame] = []
    states: Frame = {}
    for frame in drawn:
        outputs.append(run(**frame, **states))
        states = {pair.input: outputs[-1][pair.output] for pair in program.states}
    return outputs


def _measure(expected: list[Frame], given: list[Frame]) -> tuple[Agreement, ...]:
    measured = []
    for name in expected[0]:
        truth = torch.cat([frame[name].double().flatten() for frame in expected])
        difference = torch.cat([frame[name].double().flatten() for frame in given]) - truth
        scale = truth.square().mean().sqrt().clamp_min(1e-12)
        relative = float(difference.square().mean().sqrt() / scale)
        measured.append(Agreement(name, float(truth.abs().max()), float(difference.abs().max()), relative))
    return tuple(measured)
