import pytest
import torch
from torch import nn

from mattecompress.backends.reference import Reference
from mattecompress.capturing.tracing import capture
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.lower_batch_norm import LowerBatchNorm
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from tests.passes.test_lower_binary import eighths, randomize


def norms(dtype: torch.dtype = torch.float32) -> Program:
    """Two norms: one behind a convolution, one behind what is none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    program = randomize(capture(net.eval(), Signature((("x", (2, 3, 4, 5)),), ("y",)), "norms"))
    if dtype is not torch.float32:
        program.graph_module.to(dtype)
        for node in (*program.inputs, *program.operations()):
            node.meta["facts"] = program.facts(node).but(dtype=dtype)
    return program


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computes_the_same(dtype: torch.dtype) -> None:
    program = norms(dtype)
    result = LowerBatchNorm()(program)
    assert result.notes == "2 batch norms"
    assert not result.program.called_modules(BatchNorm2d)
    x = torch.randn(2, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"])


def test_the_reference_rounds_alike() -> None:
    """In a network that takes signs, every bit."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    )
    program = capture(net.eval(), Signature((("x", (2, 3, 4, 5)),), ("y",)), "norms")
    program = randomize(Binarize("react", exclude_last=False)(program).program)
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        lowered = LowerBatchNorm()(program).program.run(x=x)
    assert torch.equal(Reference().compile(program).run(x=x)["y"], lowered["y"])


def test_a_norm_may_be_called_twice() -> None:
    norm = nn.BatchNorm2d(4)
    signature = Signature((("x", (2, 4, 4, 5)),), ("y",))
    program = randomize(capture(nn.Sequential(norm, nn.ReLU(), norm).eval(), signature, "twice"))
    x = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(LowerBatchNorm()(program).program.run(x=x)["y"], program.run(x=x)["y"])


def test_refuses_half_precision() -> None:
    with pytest.raises(PreconditionError, match="run fold-batch-norm before cast-half"):
        LowerBatchNorm()(norms(torch.float16))


def test_golden(golden) -> None:
    golden(print_program(LowerBatchNorm()(eighths(norms())).program))
