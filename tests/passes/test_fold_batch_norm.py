import pytest
import torch
import torch.nn.functional as F
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


def test_a_batch_norm_may_follow_another() -> None:
    net = _random(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)))
    program = capture(net, Signature((("x", (1, 2, 3, 3)),), ("y",)), "chain")
    result = FoldBatchNorm()(program)
    assert result.notes == "folded 2 batch norms"
    x = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=1e-5, atol=1e-5)


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


class Apart(nn.Module):
    """Two weights of one module, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.ParameterDict({name: torch.empty(2, 2, 1, 1) for name in ("one", "two")})
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in self.part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight, norm in zip(self.part.values(), self.norms, strict=True):
            x = norm(F.conv2d(x, weight))
        return x


class Borrowed(nn.Module):
    """The bias of a module is read behind the batch norm, and before it or not."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.part, self.norm, self.before = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x) if self.before else F.conv2d(x, self.part.weight)
        return self.norm(y) + self.part.bias[:, None, None]


class Bare(nn.Module):
    """The weight lives at the top."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.norm = nn.Parameter(torch.empty(2, 2, 1, 1)), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, self.kernel))


class Filter(nn.Module):
    """A kernel that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.norm = nn.Module(), nn.BatchNorm2d(2)
        self.part.register_buffer("weight", torch.empty(2, 2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, self.part.weight))


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Apart(), {"part.one", "part.two", "part.bias", "part.bias_1"}),
        (Borrowed(before=False), {"part.weight", "part.bias", "part.bias_1"}),
        (Borrowed(before=True), {"part.weight", "part.bias", "part.bias_1"}),
        (Bare(), {"kernel", "bias"}),
        (Filter(), {"part.weight", "part.bias"}),
    ],
)
def test_every_tensor_keeps_its_name(net: nn.Module, names: set[str]) -> None:
    program = capture(_random(net), Signature((("x", (1, 2, 3, 3)),), ("y",)), "net")
    folded = FoldBatchNorm()(program).program
    x = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(
        folded.run(x=x)["y"],
        program.run(x=x)["y"],
        rtol=1e-5,
        atol=1e-5,
        msg="one float32 multiplication moved into the weights",
    )
    assert set(folded.state_dict()) == names
    fixed = {name for name, _ in program.graph_module.named_buffers() if not name.startswith("norm")}
    assert {name for name, _ in folded.graph_module.named_buffers()} == fixed


class Scaled(nn.Module):
    """The bias is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, self.conv.weight, self.conv.bias * 2))


@pytest.mark.parametrize("net", [Shared(), Scaled()])
def test_refuses_what_others_read_or_compute(net: nn.Module) -> None:
    program = capture(_random(net), Signature((("x", (1, 2, 3, 3)),), ("y",)), "shared")
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
