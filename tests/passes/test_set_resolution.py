import pytest
import torch

from mattecompress.capturing.tracing import capture
from mattecompress.options import OptionError, parse_options
from mattecompress.passes.set_resolution import SetResolution
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program


def test_golden(tiny_open: Program, golden) -> None:
    golden(print_program(SetResolution(height=8, width=12)(tiny_open).program))


def test_computes_the_same(rvm_open: Program) -> None:
    fixed = SetResolution(height=64, width=96, batch=2)(rvm_open).program
    inputs = {str(node.target): torch.rand(fixed.facts(node).sizes) for node in fixed.inputs}
    assert inputs["src"].shape == (2, 3, 64, 96) and inputs["r4i"].shape == (2, 64, 4, 6)
    for found, expected in zip(fixed.run(**inputs).values(), rvm_open.run(**inputs).values(), strict=True):
        assert torch.equal(found, expected)


def test_refuses_sizes_off_the_stride(rvm_open: Program) -> None:
    with pytest.raises(PreconditionError, match="height 270 is not a multiple of 16: take 272"):
        SetResolution(height=270, width=480)(rvm_open)


def test_refuses_fixed_programs(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="already fixed"):
        SetResolution(height=8, width=8)(tiny)


def test_notes_say_what_became_of_each_axis(tiny_open: Program, rvm_open: Program) -> None:
    assert SetResolution(height=8, width=12)(tiny_open).notes == "batch 1, 8x12"
    assert SetResolution(height=64, width=96)(rvm_open).notes == "batch 1, 64x96"
    assert SetResolution(height=64, width=96, batch=3)(rvm_open).notes == "batch 3, 64x96"


class Wide(torch.nn.Module):
    """Two frames at a time, of any height."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


def test_refuses_other_sizes_than_those_that_are_fixed() -> None:
    program = capture(Wide(), Signature((("x", (2, 3, "2*h", 12)),), ("y",)), "wide")
    assert SetResolution(height=8, width=12)(program).notes == "batch 2, 8x12"
    assert SetResolution(height=8, width=12, batch=2)(program).notes == "batch 2, 8x12"
    with pytest.raises(PreconditionError, match="batch is fixed at 2, not 1"):
        SetResolution(height=8, width=12, batch=1)(program)
    with pytest.raises(PreconditionError, match="width is fixed at 12, not 16"):
        SetResolution(height=8, width=16)(program)


@pytest.mark.parametrize(
    "options", ["height=-288 width=512", "height=288 width=0", "height=8 width=8 batch=0"]
)
def test_refuses_sizes_below_one(options: str) -> None:
    with pytest.raises(OptionError, match="expected at least 1"):
        parse_options(SetResolution, options, "set-resolution")
