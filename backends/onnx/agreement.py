"""Same program, same answer: ONNX Runtime against the reference, on random frames with the states carried."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mattecompress.backends import Artifact
from mattecompress.facts import evaluate_size
from mattecompress.program import Program
from mattecompress.propagation import program_symbols

FLOAT_TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 2e-2
SYMBOL_SIZES = (1, 5, 7, 6)


class AgreementError(Exception):
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
    generator = torch.Generator().manual_seed(seed)
    symbols = dict(zip(program_symbols(program), SYMBOL_SIZES, strict=False))
    shapes = {
        str(node.target): [int(evaluate_size(size, symbols)) for size in program.facts(node).shape]
        for node in program.inputs
    }
    dtypes = {str(node.target): program.facts(node).dtype for node in program.inputs}
    carried = {pair.input for pair in program.states}
    zeros = {name: torch.zeros(shapes[name], dtype=dtypes[name]) for name in carried}
    ours, theirs = dict(zeros), dict(zeros)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in program.output_names}
    for _ in range(frames):
        drawn = {
            name: torch.rand(shape, generator=generator).to(dtypes[name])
            for name, shape in shapes.items()
            if name not in carried
        }
        with torch.no_grad():
            expected = program.run(**drawn, **ours)
        given = artifact.run(**drawn, **theirs)
        ours = {pair.input: expected[pair.output] for pair in program.states}
        theirs = {pair.input: given[pair.output] for pair in program.states}
        for name, values in pairs.items():
            values.append((expected[name], given[name]))
    return tuple(_measure(name, values) for name, values in pairs.items())


def require_agreement(program: Program, artifact: Artifact) -> None:
    """Compare, and accept only rounding.

    A float program may differ by 1e-4 of an output's peak (at least of 1) anywhere. A program that rounds values to
    codes or signs turns a difference in the last place into a whole step, so there the root mean square counts.

    Raises:
        AgreementError: an output differs by more.
    """
    rounded = _rounds(program)
    for agreement in compare(program, artifact, frames=1 if rounded else 2):
        limit = FLOAT_TOLERANCE * max(1.0, agreement.peak)
        differs = agreement.relative > ROUNDED_TOLERANCE if rounded else agreement.worst > limit
        if differs:
            raise AgreementError(
                f"{program.name}: output {agreement.output} differs from the reference by {agreement.worst:.3g} "
                f"at most and {agreement.relative:.3g} relative"
            )


def _rounds(program: Program) -> bool:
    return program.level.value != "float"


def _measure(name: str, values: list[tuple[Tensor, Tensor]]) -> Agreement:
    expected = torch.cat([pair[0].double().flatten() for pair in values])
    given = torch.cat([pair[1].double().flatten() for pair in values])
    difference = given - expected
    scale = expected.square().mean().sqrt().clamp_min(1e-12)
    relative = float(difference.square().mean().sqrt() / scale)
    return Agreement(name, float(expected.abs().max()), float(difference.abs().max()), relative)
