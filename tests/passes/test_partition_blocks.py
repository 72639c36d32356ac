import networkx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mattecompress.analysis.regions import region_graph, regions_in_order
from mattecompress.capturing.tracing import capture
from mattecompress.passes.partition_blocks import PartitionBlocks
from mattecompress.program import Program
from mattecompress.signature import Signature


def test_rvm_has_the_papers_blocks(rvm: Program) -> None:
    program = PartitionBlocks()(rvm).program
    backbone = [f"backbone.features.{number}" for number in range(17)]
    decoder = [f"decoder.decode{number}" for number in (4, 3, 2, 1, 0)]
    assert list(regions_in_order(program)) == [*backbone, "aspp", *decoder, "project_mat"]


def test_every_layer_has_a_region(rvm: Program) -> None:
    program = PartitionBlocks()(rvm).program
    assert all(program.facts(node).region for node in program.find(torch.ops.aten.conv2d.default))


def test_regions_are_convex(rvm: Program) -> None:
    program = PartitionBlocks()(rvm).program
    assert networkx.is_directed_acyclic_graph(region_graph(program))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.c(torch.relu(y + self.b(y)))


def test_other_networks_are_cut_at_narrow_points() -> None:
    program = capture(Residual().eval(), Signature((("x", (1, 2, 4, 4)),), ("y",)), "residual")
    regions = regions_in_order(PartitionBlocks()(program).program)
    names = [[node.name for node in nodes] for nodes in regions.values()]
    assert names == [["conv2d"], ["relu", "conv2d_1", "add"], ["relu_1", "conv2d_2"]]


class Bottleneck(nn.Module):
    """The name that the pass knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Around(nn.Module):
    """Two layers with something between."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Conv2d(4, 4, 1), between, nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


class Behind(nn.Module):
    """An encoder of known blocks and a decoder of another's kind."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(Bottleneck(), Bottleneck()), decoder
        self.decoder_1 = nn.Sequential(nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder_1(self.decoder(self.encoder(x)))


class Joined(nn.Module):
    """Two layers of one parent whose results are put side by side before the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


class Twice(nn.Module):
    """One known block, called at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Bottleneck()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(F.max_pool2d(self.block(x), 2))


class Bare(nn.Module):
    """A layer whose weight lives at the top, before and behind a known block."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.block = nn.Parameter(torch.rand(4, 4, 1, 1)), Bottleneck()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.block(F.conv2d(x, self.weight)), self.weight)


@pytest.mark.parametrize(
    "net",
    [
        Behind(Around(nn.Upsample(scale_factor=2))),
        Behind(Around(nn.AvgPool2d(2))),
        Behind(Around(nn.GELU())),
        Behind(Around(nn.SiLU())),
        Behind(Around(nn.PReLU())),
        Behind(Around(Bottleneck())),
        Behind(Around(Around(nn.GELU()))),
        Behind(Joined()),
        Behind(nn.Sequential(nn.Conv2d(4, 4, 1), Bottleneck(), nn.ReLU(), nn.Conv2d(4, 4, 1))),
        Twice(),
        Bare(),
    ],
)
def test_what_leaves_a_region_does_not_come_back(net: nn.Module) -> None:
    program = capture(net.eval(), Signature((("x", (1, 4, 8, 8)),), ("y",)), "net")
    result = PartitionBlocks()(program).program
    assert networkx.is_directed_acyclic_graph(region_graph(result))
    assert all(result.facts(node).region for node in result.find(torch.ops.aten.conv2d.default))
    assert not PartitionBlocks()(result).modified


def test_parts_of_a_region_are_numbered() -> None:
    net = Behind(Around(nn.GELU())).eval()
    program = capture(net, Signature((("x", (1, 4, 8, 8)),), ("y",)), "net")
    regions = list(regions_in_order(PartitionBlocks()(program).program))
    assert regions == ["encoder.0", "encoder.1", "decoder", "decoder_2", "decoder_1"]


def test_is_idempotent(rvm: Program) -> None:
    assert not PartitionBlocks()(PartitionBlocks()(rvm).program).modified
