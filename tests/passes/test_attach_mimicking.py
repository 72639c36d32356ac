import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.options import parse_options
from mattecompress.passes.attach_mimicking import AttachMimicking
from mattecompress.pipeline import PreconditionError
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program


class Encoder(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(x, 2), F.avg_pool2d(x, 4).relu()


class Net(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.mask = SpatialMask(SpatialMaskConfig()) if masked else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        f1, f2 = self.encoder(x)
        return f1 * F.interpolate(self.mask(f2), scale_factor=2.0)


def program_of(masked: bool = True) -> Program:
    return capture(Net(masked).eval(), Signature((("x", (2, 1, 8, 12)),), ("y",)), "net")


def test_golden(golden) -> None:
    golden(print_program(AttachMimicking("encoder")(program_of()).program))


def test_taps_are_outputs() -> None:
    program, net = program_of(), Net(masked=True)
    result = AttachMimicking("encoder")(program)
    assert result.notes == "2 features of encoder, under a mask"
    x = torch.rand(2, 1, 8, 12)
    outputs, (f1, f2) = result.program.run(x=x), net.encoder(x)
    assert list(outputs) == ["y", "tap1", "tap2", "tap_mask"]
    assert torch.equal(outputs["y"], program.run(x=x)["y"])
    assert torch.equal(outputs["tap1"], f1) and torch.equal(outputs["tap2"], f2)
    assert torch.equal(outputs["tap_mask"], net.mask(f2))
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program


class Coarse(Net):
    """Its mask is made of the last of four channels."""

    def forward(self, x: Tensor) -> Tensor:
        f1, f2 = self.encoder(x)
        matte = torch.cat([f2, f2, f2, -f2], 1)
        return f1 * F.interpolate(self.mask(matte[:, 3:]), scale_factor=2.0)


def test_a_coarse_matte_is_tapped() -> None:
    program = capture(Coarse(True).eval(), Signature((("x", (2, 1, 8, 12)),), ("y",)), "net")
    tapped = AttachMimicking("encoder")(program).program
    outputs = tapped.run(x=torch.rand(2, 1, 8, 12))
    assert outputs["tap_coarse"].shape == (2, 4, 2, 3)
    assert AttachMimicking(remove=True)(tapped).program == program


def test_come_off_again() -> None:
    program = program_of()
    tapped = AttachMimicking("encoder")(program).program
    assert not AttachMimicking("encoder")(tapped).modified
    result = AttachMimicking(remove=True)(tapped)
    assert result.notes == "2 taps removed" and result.program == program
    assert not AttachMimicking(remove=True)(program).modified


def test_a_network_without_a_mask_has_features() -> None:
    result = AttachMimicking("encoder")(program_of(masked=False))
    assert result.notes == "2 features of encoder, no mask"
    assert result.program.output_names == ("y", "tap1", "tap2")


def test_refuses_what_is_no_encoder() -> None:
    with pytest.raises(PreconditionError, match="no operation comes from a module 'backbone'"):
        AttachMimicking()(program_of())


def test_its_text_is_its_options() -> None:
    made = AttachMimicking("encoder", remove=True)
    assert str(made) == "attach-mimicking{encoder=encoder remove=true}"
    assert parse_options(AttachMimicking, "encoder=encoder remove=true", "attach-mimicking") == made
