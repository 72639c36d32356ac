import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.elastic_shortcut import ElasticShortcut, ElasticShortcutConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.passes.expand_modules import ExpandModules
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program


class Net(nn.Module):
    """A shortcut that is called twice on the way, and a mask."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, factor: float, mask: SpatialMaskConfig
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.shortcut = ElasticShortcut(ElasticShortcutConfig(inputs, outputs, stride, factor))  # type: ignore[arg-type]
        self.mask = SpatialMask(mask)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(self.shortcut(self.conv(x), x), x)
        return y * self.mask(y[:, :1])


def program_of(net: Net, height: int | str = 7, width: int | str = 10) -> Program:
    shape = (2, net.conv.in_channels, height, width)
    return capture(net.eval(), Signature((("x", shape),), ("y",)), "net")


@pytest.mark.parametrize("rule", ["residual", "xor", "support_residual"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 0.3])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 8, 2), (6, 6, 1), (24, 40, 2), (12, 4, 1)])
@torch.no_grad()
def test_every_bit_is_the_same(rule, factor: float, inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(inputs)
    program = program_of(Net(inputs, outputs, stride, factor, SpatialMaskConfig(rule, 0.2)))
    result = ExpandModules()(program)
    assert result.modified and result.notes == "2 of ElasticShortcut, 1 of SpatialMask"
    assert result.program.level is Level.FLOAT
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program
    x = torch.randn(2, inputs, 7, 10)
    assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])
    assert not ExpandModules()(result.program).modified


@torch.no_grad()
def test_a_pixel_has_no_smaller_size() -> None:
    program = program_of(Net(4, 4, 2, 0.5, SpatialMaskConfig()), 1, 2)
    x = torch.randn(2, 4, 1, 2)
    assert torch.equal(ExpandModules()(program).program.run(x=x)["y"], program.run(x=x)["y"])


def test_refuses_a_mask_of_open_size() -> None:
    with pytest.raises(PreconditionError, match="set-resolution"):
        ExpandModules()(program_of(Net(4, 4, 1, 1.0, SpatialMaskConfig()), "h", "w"))
