"""What an exported graph may change in place, and what its operations become."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.normalization import NormalizationError
from mattecompress.capturing.tracing import capture
from mattecompress.signature import Signature


class ChangesView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, :1].mul_(3)
        return y


def test_refuses_changed_views() -> None:
    with pytest.raises(NormalizationError, match="changes a view in place"):
        capture(ChangesView(), Signature((("x", (1, 2)),), ("y",)), "view")


class Kept(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        kept = y.clone()
        return torch.relu_(y) + kept


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x.permute(1, 0).contiguous()) + x.permute(1, 0)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        same = y.detach().contiguous()
        y.relu_()
        return y + same


@pytest.mark.parametrize("net", [Kept(), Turned(), InPlace()])
def test_keeps_what_copies_hold(net: nn.Module) -> None:
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    program = capture(net, Signature((("x", (2, 2)),), ("y",)), "kept")
    assert torch.equal(program.run(x=x)["y"], net(x))


class ReadsViewLater(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        part = y.unsqueeze(0)[..., :1]
        y.relu_()
        return y + part


def test_refuses_changes_that_a_view_sees() -> None:
    with pytest.raises(NormalizationError, match="what a view is read of afterwards"):
        capture(ReadsViewLater(), Signature((("x", (1, 2)),), ("y",)), "view")


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.seen, Tensor)
        return self.seen.add_(x) * 2


def test_refuses_hidden_states() -> None:
    with pytest.raises(NormalizationError, match="changes seen of the network in place: make it a state"):
        capture(Remembers(), Signature((("x", (1, 2)),), ("y",)), "remembers")


def test_a_transposed_convolution_is_no_view() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 2, 2, 2), nn.ReLU(inplace=True)).eval()
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        program = capture(net, Signature((("x", (1, 3, 4, 4)),), ("y",)), "up")
        assert torch.equal(program.run(x=x)["y"], net(x))


@pytest.mark.parametrize(
    ("taps", "options"),
    [(3, {}), (4, {}), ((2, 3), {"dilation": (1, 2)}), (5, {"groups": 2}), (3, {"bias": False})],
)
def test_padding_by_name_becomes_numbers(taps: Any, options: Any) -> None:
    x = torch.randn(1, 2, 6, 7)
    for padding in ("same", "valid"):
        net = nn.Conv2d(2, 4, taps, padding=padding, **options)
        with torch.no_grad():
            program = capture(net, Signature((("x", (1, 2, 6, 7)),), ("y",)), "same")
            assert torch.equal(program.run(x=x)["y"], net(x))
        assert len(program.find(torch.ops.aten.conv2d.default)) == 1


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2)])
def test_batch_norms_with_and_without_factors(norm: nn.Module) -> None:
    x = torch.randn(1, 2, 3, 3)
    program = capture(norm.eval(), Signature((("x", (1, 2, 3, 3)),), ("y",)), "norm")
    torch.testing.assert_close(program.run(x=x)["y"], norm(x))


def test_refuses_statistics_of_the_batch() -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    with pytest.raises(NormalizationError, match="running statistics"):
        capture(norm, Signature((("x", (1, 2, 3, 3)),), ("y",)), "norm")
