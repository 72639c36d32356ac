import pytest
import torch
from torch import nn

from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.passes.lower_batch_norm import LowerBatchNorm
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.tracing import capture
from tests.passes.test_lower_binary import eighths, randomize


def norms(dtype: torch.dtype = torch.float32) -> Program:
    """Two norms: one behind a convolution, one behind what is none."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    program = capture(net.eval(), Signature((("x", (2, 3, 4, 5)),), ("y",)), "norms")
    randomize(program)
    if dtype is not torch.float32:
        program.graph_module.to(dtype)
        for node in (*program.inputs, *program.operations()):
            node.meta["facts"] = program.facts(node).but(dtype=dtype)
    return program


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_bit_is_the_same(dtype: torch.dtype) -> None:
    program = norms(dtype)
    result = LowerBatchNorm()(program)
    assert result.notes == "2 batch norms"
    assert not result.program.called_modules(BatchNorm2d)
    x = torch.randn(2, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])


def test_inference_is_batch_normalization() -> None:
    program = norms()
    (_, call) = program.called_modules(BatchNorm2d)
    norm = program.module(call)
    assert isinstance(norm, BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    expected = (x - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + norm.eps)
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype is torch.bfloat16


def test_refuses_half_precision() -> None:
    with pytest.raises(PreconditionError, match="run fold-batch-norm before cast-half"):
        LowerBatchNorm()(norms(torch.float16))


def test_golden(golden) -> None:
    golden(print_program(LowerBatchNorm()(eighths(norms())).program))
