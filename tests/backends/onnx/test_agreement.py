import pytest
import torch

from mattecompress.backends.onnx.agreement import AgreementError, compare, require_agreement
from mattecompress.backends.reference import Reference
from mattecompress.program import StatePair
from tests.backends.onnx.nets import program_of


@pytest.fixture
def program():
    program = program_of(lambda x: x * 0.5 + 1, (1, 3, "2*h", 5))
    program.states = (StatePair("x", "y"),)
    return program


class Off:
    """An artifact that is off by a constant."""

    def __init__(self, program, by):
        self.artifact, self.by = Reference().compile(program), by

    def run(self, **inputs):
        return {name: value + self.by for name, value in self.artifact.run(**inputs).items()}


def test_the_program_agrees_with_itself(program):
    (agreement,) = compare(program, Reference().compile(program), frames=3)
    assert (agreement.output, agreement.worst, agreement.relative) == ("y", 0, 0)
    assert agreement.peak == 1.75


def test_states_are_carried_by_each_side(program):
    """0.1 too much on each frame, half of it fed on: 0.1, 0.15, 0.175."""
    (agreement,) = compare(program, Off(program, 0.1), frames=3)
    assert agreement.worst == pytest.approx(0.175, abs=1e-6)


def test_a_difference_is_an_error(program):
    require_agreement(program, Off(program, 1e-5))
    with pytest.raises(AgreementError, match="output y differs from the reference by 0.01 at most"):
        require_agreement(program, Off(program, 0.01))


def test_rounding_programs_may_turn_a_few_codes():
    program = program_of(lambda x: torch.ops.matte.quantize(x, 0.1, 0, 8) * 0.1, (1, 3, 8, 8))

    class OneStep(Off):
        def run(self, **inputs):
            outputs = self.artifact.run(**inputs)
            outputs["y"].view(-1)[0] += self.by
            return outputs

    require_agreement(program, OneStep(program, 0.001))
    with pytest.raises(AgreementError):
        require_agreement(program, OneStep(program, 1.0))


def test_rounding_programs_are_judged_by_their_own_restlessness():
    """Codes of values that stand on ties turn with the slightest nudge, and all of them may turn."""
    program = program_of(
        lambda x: torch.ops.matte.quantize(x * 0 + 0.05, 0.1, 0, 8) * 0.1 + x * 0, (1, 3, 8, 8)
    )
    still = program_of(
        lambda x: torch.ops.matte.quantize(x * 0 + 0.07, 0.1, 0, 8) * 0.1 + x * 0, (1, 3, 8, 8)
    )
    nudged = program_of(lambda x: torch.ops.matte.quantize(x + 0.05 - x, 0.1, 0, 8) * 0.1, (1, 3, 8, 8))
    require_agreement(nudged, Off(nudged, 0.05))
    for steady in (program, still):
        with pytest.raises(AgreementError):
            require_agreement(steady, Off(steady, 0.05))
