import pytest
import torch

from mattecompress.passes.set_resolution import SetResolution
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Program
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
