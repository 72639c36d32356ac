import pytest
import torch
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program


def _random(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return net.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_computes_the_same(bias: bool, groups: int) -> None:
    net = _random(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=bias, groups=groups), nn.BatchNorm2d(6)))
    program = capture(net, Signature((("x", (1, 4, 5, 7)),), ("y",)), "pair")
    result = FoldBatchNorm()(program)
    assert result.modified and result.notes == "folded 1 batch norms"
    x = torch.rand(1, 4, 5, 7)
    torch.testing.assert_close(
        result.program.run(x=x)["y"],
        program.run(x=x)["y"],
        rtol=1e-5,
        atol=1e-5,
        msg="one float32 multiplication moved into the weights",
    )


def test_exact_leaves_networks_that_take_signs(tiny: Program) -> None:
    assert FoldBatchNorm(exact=True)(tiny).modified
    binary = Binarize("react")(tiny).program
    assert FoldBatchNorm()(binary).modified
    assert not FoldBatchNorm(exact=True)(binary).modified


def test_golden(tiny: Program, golden) -> None:
    golden(print_program(FoldBatchNorm()(tiny).program))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_refuses_a_convolution_with_another_reader() -> None:
    program = capture(_random(Shared()), Signature((("x", (1, 2, 3, 3)),), ("y",)), "shared")
    result = FoldBatchNorm()(program)
    assert not result.modified
    assert len(result.program.called_modules(BatchNorm2d)) == 1


def test_rvm_keeps_its_names(rvm: Program) -> None:
    program = FoldBatchNorm()(rvm).program
    assert not program.called_modules(BatchNorm2d)
    names = set(program.state_dict())
    assert {
        "backbone.features.0.0.weight",
        "backbone.features.0.0.bias",
        "decoder.decode4.gru.hh.0.bias",
    } <= names
