import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.passes.fold_constants import FoldConstants
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program


class Placed(nn.Module):
    """Adds the distances of a table's rows, and returns one of them beside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(3)[:, None] - torch.arange(3)[None] + 2
        return x + self.table[index].sum(1), self.table * 2


def program_of(shape: tuple[int | str, ...] = (2, 3, 4)) -> Program:
    torch.manual_seed(0)
    return capture(Placed().eval(), Signature((("x", shape),), ("y", "twice")), "placed")


def test_golden(golden) -> None:
    golden(print_program(FoldConstants()(program_of()).program))


def test_what_no_input_reaches_is_computed_once() -> None:
    program, x = program_of(), torch.randn(2, 3, 4)
    result = FoldConstants()(program)
    assert result.modified and result.notes is not None and result.notes.endswith("operations")
    assert len(list(result.program.operations())) == 2
    for name, value in program.run(x=x).items():
        assert torch.equal(result.program.run(x=x)[name], value)
    assert not FoldConstants()(result.program).modified


def test_what_an_input_reaches_stays() -> None:
    program = capture(nn.Linear(4, 2), Signature((("x", ("n", 4)),), ("y",)), "linear")
    assert not FoldConstants()(program).modified
