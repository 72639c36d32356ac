import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.analysis.cost import cost
from mattecompress.binarization.masking import masked_nodes
from mattecompress.capturing.tracing import capture
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.program import Program
from mattecompress.signature import Signature


class Masked(nn.Module):
    """A 3x3 and the float layer behind it under a mask, a 1x1 everywhere, and one layer that both read."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.close, self.closer, self.everywhere = (
            nn.Conv2d(4, 4, size, padding=size // 2) for size in (1, 3, 3, 1)
        )
        self.mask = SpatialMask(SpatialMaskConfig())

    def forward(self, x: Tensor) -> list[Tensor]:
        mask = F.interpolate(self.mask(x[:, :1]), scale_factor=2, mode="bilinear", align_corners=False)
        big = self.both(F.interpolate(x, scale_factor=2, mode="nearest"))
        close = self.closer(self.close(big).relu())
        return [close * mask + self.everywhere(big)]


class Seen(Masked):
    """Its masked layer is an output too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        mask, close = self.mask(x[:, :1]), self.close(x)
        return [close * mask, close]


def program_of(net: nn.Module, *outputs: str) -> Program:
    return capture(net.eval(), Signature((("x", (1, 4, 6, 8)),), outputs), "masked")


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return program_of(Masked(), "y")


def test_finds_what_only_a_mask_needs(program: Program) -> None:
    masked = masked_nodes(program)
    assert [program.facts(node).scope for node in reversed(masked)] == ["close", "", "closer"]
    (mask,) = set(masked.values())
    assert mask.target is torch.ops.aten.upsample_bilinear2d.vec and program.facts(mask).sizes == (
        1,
        1,
        12,
        16,
    )


def test_values_that_are_read_elsewhere_are_not_masked() -> None:
    assert not masked_nodes(program_of(Seen(), "y", "z"))


def test_the_marked_values_do_not_matter_where_the_mask_is_zero(program: Program) -> None:
    x = torch.randn(1, 4, 6, 8)
    before = program.run(x=x)["y"]
    mask = Masked().mask(x[:, :1])
    inside = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False).expand_as(before) > 0
    with torch.no_grad():
        program.graph_module.get_parameter("closer.bias").add_(1)
    after = program.run(x=x)["y"]
    assert (
        torch.equal(before[~inside], after[~inside])
        and not torch.isclose(before[inside], after[inside]).any()
    )


def test_masked_convolutions_are_counted_apart(program: Program) -> None:
    counted = cost(program)
    macs = {node.name: node.macs for node in counted.nodes if node.macs}
    one, close, closer, everywhere = macs.values()
    assert (one, close, everywhere) == (
        4 * 4 * 12 * 16,
        9 * 4 * 4 * 12 * 16,
        4 * 4 * 12 * 16,
    ) and close == closer
    assert counted.totals.masked_gflops == pytest.approx((close + closer) / 1e9)
