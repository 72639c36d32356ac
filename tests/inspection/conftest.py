import pytest

from mattecompress.program import Program


def softened(program: Program) -> Program:
    """A copy whose outputs stay between 0 and 1, so that every error shows in them."""
    copy = program.clone()
    copy.graph_module.get_parameter("head.weight").data *= 0.05
    copy.graph_module.get_parameter("head.bias").data[:] = 0.5
    return copy


@pytest.fixture(scope="module")
def soft(tiny: Program) -> Program:
    return softened(tiny)


@pytest.fixture(scope="module")
def soft_open(tiny_open: Program) -> Program:
    return softened(tiny_open)
