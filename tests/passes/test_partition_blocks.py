import networkx
import torch
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


def test_is_idempotent(rvm: Program) -> None:
    assert not PartitionBlocks()(PartitionBlocks()(rvm).program).modified
