import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.analysis.cost import cost
from mattecompress.capturing.tracing import capture
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.passes.lower_masks import LowerMasks
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program, StatePair
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

aten, matte = torch.ops.aten, torch.ops.matte
DENSE = (
    "expand-modules,fold-batch-norm{exact=true},lower-quantized,lower-binary,lower-batch-norm,lower-functions"
)
CASES = [
    ("residual", 1, 12, 16),
    ("xor", 1, 12, 16),
    ("support_residual", 3, 10, 14),
    ("support_residual", 1, 7, 5),
    ("residual", 2, 1, 1),
]


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def binary(inputs: int, outputs: int, kernel: int) -> nn.Module:
    shape = ((kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
    return BinaryConv2d(BinaryConvConfig(inputs, outputs, *shape, method="react"))


class Sums(nn.Module):
    """Masked sums at two sizes: of one-bit layers, of a gate that has state, and of a float layer behind a one-bit one."""

    def __init__(self, rule: str = "support_residual") -> None:
        super().__init__()
        self.mask = SpatialMask(SpatialMaskConfig(rule, 0.01))  # type: ignore[arg-type]
        self.close, self.everywhere = (
            nn.Sequential(binary(4, 8, k), nn.BatchNorm2d(8), nn.PReLU(8)) for k in (3, 1)
        )
        self.gate_close, self.gate = (nn.Sequential(binary(8, 8, k), nn.Sigmoid()) for k in (3, 1))
        self.far_close = nn.Sequential(binary(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.far = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        mask = self.mask(x[:, 3:])
        y = mask * self.close(x) + self.everywhere(x)
        h = (self.gate(y) + self.gate_close(y) * mask) * h + y
        size = [2 * extent for extent in x.shape[-2:]]
        large, wide = (
            F.interpolate(value, size, mode="bilinear", align_corners=False) for value in (h, mask)
        )
        return [self.far(large) + wide * self.far_close(large), h]


def program_of(net: nn.Module, batch: int = 1, height: int | str = 12, width: int | str = 16) -> Program:
    shapes = (("x", (batch, 4, height, width)), ("h", (batch, 8, height, width)))
    return capture(net.eval(), Signature(shapes, ("y", "r"), (StatePair("h", "r"),)), "sums")


def lowered(program: Program) -> tuple[Program, Program]:
    """Without and with tiles."""
    dense = parse_pipeline(DENSE).run(program)
    return dense, parse_pipeline("lower{strict=true}").run(program)


def inputs_of(program: Program, coarse: Tensor | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = {n.name: torch.randn(program.facts(n).sizes, generator=generator) for n in program.inputs}
    if coarse is not None:
        values["x"][:, 3:] = coarse
    return values


def assert_same(one: Program, other: Program, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected, found = one.run(**inputs), other.run(**inputs)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("rule", "batch", "height", "width"), CASES)
def test_every_bit_is_the_same(rule: str, batch: int, height: int, width: int) -> None:
    dense, tiled = lowered(program_of(Sums(rule), batch, height, width))
    assert tiled.level is Level.LOWERED and len(tiled.find(matte.scatter_tiles.default)) == 3
    assert_same(dense, tiled, inputs_of(dense))
    assert parse_program(print_program(tiled), tiled.state_dict()) == tiled
    assert not LowerMasks()(tiled).modified


def test_masks_of_zeros_of_ones_and_of_one_pixel() -> None:
    dense, tiled = lowered(program_of(Sums("residual"), 2))
    nothing, pixel = torch.zeros(2, 1, 12, 16), torch.zeros(2, 1, 12, 16)
    pixel[1, 0, 5, 7] = 0.014
    everything = 1.0 - 2 * (torch.arange(12)[:, None] + torch.arange(16)).remainder(2).expand(2, 1, 12, 16)
    for coarse, count in ((nothing, 0), (pixel, 1), (everything, 2 * 12 * 16)):
        assert Sums("residual").mask(coarse).sum() == count
        inputs = inputs_of(dense, coarse)
        assert_same(dense, tiled, inputs)
        assert_same(dense, tiled, {**inputs, "h": torch.zeros_like(inputs["h"])})


def test_lists_are_made_once_for_each_size() -> None:
    dense, _ = lowered(program_of(Sums()))
    result = LowerMasks()(dense)
    assert result.notes == "3 sums, 4 convolutions under 3 lists of tiles"
    assert len(result.program.find(matte.mask_tiles.default)) == 3
    assert len(result.program.find(aten.max_pool2d.default)) == 1


def test_golden(golden) -> None:
    program = program_of(Sums())
    for tensor in program.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_((tensor * 8).round() / 8)
    golden(print_program(lowered(program)[1]))


def test_costs_stay_known() -> None:
    dense, tiled = lowered(program_of(Sums()))
    before, after = cost(dense).totals, cost(tiled).totals
    assert (before.macs, before.binary_macs) == (after.macs, after.binary_macs)
    assert before.masked_gflops == after.masked_gflops > 0


class Chained(Sums):
    """A masked sum of a masked sum, which the second layer reads too; the first one stands left or right."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        mask = self.mask(x[:, 3:])
        y = mask * self.close(x) + self.everywhere(x)
        z = mask * self.gate_close(y)
        return [y + z if self.left else z + y, h]


@pytest.mark.parametrize("left", [True, False])
def test_a_sum_of_a_sum(left: bool) -> None:
    dense, tiled = lowered(program_of(Chained(left)))
    assert len(tiled.find(matte.scatter_tiles.default)) == 2
    assert_same(dense, tiled, inputs_of(dense))


class Shared(Sums):
    """The close layer's result is read beside the sum too, or multiplied by what is no mask."""

    def __init__(self, elsewhere: bool) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        close, factor = self.close(x), self.mask(x[:, 3:]) if self.elsewhere else x[:, 3:].sigmoid()
        y = factor * close + self.everywhere(x)
        return [y + close if self.elsewhere else y, h]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_leaves_what_more_than_a_mask_needs(elsewhere: bool) -> None:
    dense, tiled = lowered(program_of(Shared(elsewhere)))
    assert not LowerMasks()(dense).modified and not tiled.find(matte.mask_tiles.default)


class PerImage(Sums):
    """Behind the close layer, a number for all, each image or each row, or the state of the first image for all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("images", torch.rand(2, 1, 1, 1))
        self.register_buffer("rows", torch.rand(12, 1))

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        factors = {"state": h[:1], "mean": x.mean(), "images": self.images, "rows": self.rows}
        factor = factors[self.kind]
        return [self.mask(x[:, 3:]) * (self.close(x) * factor) + self.everywhere(x), h]


@pytest.mark.parametrize("kind", ["images", "rows", "state", "mean"])
def test_what_differs_between_positions_or_is_computed_stays_everywhere(kind: str) -> None:
    dense, tiled = lowered(program_of(PerImage(kind), 2))
    assert not tiled.find(matte.mask_tiles.default)
    assert_same(dense, tiled, inputs_of(dense))


class Integers(nn.Module):
    """A layer on codes under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = SpatialMask(SpatialMaskConfig())
        self.close, self.everywhere = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        return [self.mask(x[:, 3:]) * self.close(x).relu() + self.everywhere(x), h]


@pytest.mark.parametrize(
    ("before", "target"),
    [
        ("canonicalize", matte.masked_conv2d.default),
        ("quantize{weights=8 activations=8}", matte.masked_quantized_conv2d.default),
    ],
)
def test_layers_in_floats_and_codes(before: str, target: object) -> None:
    clip = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    program = parse_pipeline(before).run(program_of(Integers()), Context(clips=[clip]))
    dense, tiled = lowered(program)
    assert len(tiled.find(target)) == 1
    assert_same(dense, tiled, inputs_of(dense))


def test_an_open_size_is_refused_in_one_line() -> None:
    with pytest.raises(PreconditionError, match="a mask cannot be expanded at an open size: fix it with"):
        parse_pipeline("lower").run(program_of(Sums(), 1, "h", "w"))
