import torch

from mattecompress.capturing.tracing import capture
from mattecompress.passes.canonicalize import Canonicalize
from mattecompress.passes.set_resolution import SetResolution
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program

slice_tensor = torch.ops.aten.slice.Tensor


class Slices(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = slice_tensor(slice_tensor(x, 2, None, 4), 3, 0, 9)
        return whole + x[:, :1]


def test_fires() -> None:
    program = capture(Slices(), Signature((("x", (1, 2, 4, 5)),), ("y",)), "slices")
    result = Canonicalize()(program)
    assert result.modified
    assert len(result.program.find(slice_tensor)) == 1
    x = torch.rand(1, 2, 4, 5)
    assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])


def test_keeps_slices_of_open_sizes_that_cut(tiny_open: Program) -> None:
    result = Canonicalize()(tiny_open)
    assert all(
        "aten.slice" not in line or ", 1, " in line for line in print_program(result.program).splitlines()
    )


def test_is_idempotent(tiny_open: Program) -> None:
    fixed = SetResolution(height=8, width=8)(tiny_open).program
    once = Canonicalize()(fixed).program
    assert not Canonicalize()(once).modified
