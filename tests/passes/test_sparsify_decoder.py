import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.analysis.cost import cost
from mattecompress.binarization.masking import masked_nodes
from mattecompress.capturing.tracing import capture
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.options import parse_options
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.lower_binary import LowerBinary
from mattecompress.passes.partition_blocks import PartitionBlocks
from mattecompress.passes.set_resolution import SetResolution
from mattecompress.passes.sparsify_decoder import SparsifyDecoder
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

ALL = {"rule": "residual", "threshold": 0.0}
"""A mask of ones: no residual is below 0."""
NONE = {"rule": "residual", "threshold": 1e9}
DECODER = tuple(f"decoder.decode{scale}" for scale in (3, 2, 1, 0))
RVM_DECODER = SparsifyDecoder("decoder.decode4", "project_mat.conv", DECODER)


class Block(nn.Module):
    """The name `partition-blocks` knows; two layers with an activation between."""

    def __init__(self, inputs: int, kernels: tuple[int, ...], groups: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, inputs, size, padding=size // 2, groups=groups) for size in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class Net(nn.Module):
    """A coarse block at half the size, a finer one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = Block(6, (3,))
        self.fine = Block(6, (3, 1, 5), groups=2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.coarse(F.avg_pool2d(x, 2))
        return self.head(self.fine(F.interpolate(y, scale_factor=2, mode="nearest")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def program_of(net: nn.Module, height: int | str = 8, width: int | str = 12) -> Program:
    captured = capture(net.eval(), Signature((("x", (1, 6, height, width)),), ("y",)), "net")
    return PartitionBlocks()(captured).program


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return program_of(Net())


def sparsify(**options: object) -> SparsifyDecoder:
    return SparsifyDecoder("coarse", "head", ("fine",), **options)  # type: ignore[arg-type]


def eighths(net: nn.Module) -> nn.Module:
    """Numbers whose digests are the same on every processor."""
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float32)
            parameter.copy_(((values * 5 + number) % 17 / 8 - 1).reshape(parameter.shape))
    return net


def test_golden(golden) -> None:
    result = sparsify()(program_of(eighths(Net()), "2*h", "2*w"))
    for tensor in result.program.state_dict().values():
        tensor.copy_((tensor * 8).round() / 8)
    golden(print_program(result.program))


def test_a_mask_of_ones_changes_nothing(program: Program) -> None:
    x = torch.randn(1, 6, 8, 12)
    result = sparsify(**ALL)(program)
    assert result.modified and result.notes == "2 layers under a mask of coarse, at 1 sizes"
    with torch.no_grad():
        torch.testing.assert_close(
            result.program.run(x=x)["y"],
            program.run(x=x)["y"],
            rtol=1e-5,
            atol=1e-6,
            msg="the taps are added in another order",
        )


def test_without_a_mask_only_the_centre_counts(program: Program) -> None:
    x = torch.randn(1, 6, 8, 12)
    centres = Net().eval()
    centres.load_state_dict({name: value.clone() for name, value in program.state_dict().items()})
    for layer in (centres.fine.layers[0], centres.fine.layers[2]):
        middle = layer.kernel_size[0] // 2
        around = torch.ones(layer.kernel_size)
        around[middle, middle] = 0
        with torch.no_grad():
            layer.weight[:, :, around.bool()] = 0
    result = sparsify(**NONE)(program).program
    with torch.no_grad():
        torch.testing.assert_close(result.run(x=x)["y"], centres(x), rtol=1e-5, atol=1e-6)


def test_sizes_may_be_open(program: Program) -> None:
    result = sparsify(threshold=0.2, rule="residual")(program_of(Net(), "2*h", "2*w")).program
    fixed = SetResolution(8, 12)(result).program
    x = torch.randn(1, 6, 8, 12)
    with torch.no_grad():
        assert torch.equal(result.run(x=x)["y"], fixed.run(x=x)["y"])
        assert result.run(x=torch.randn(1, 6, 14, 2))["y"].shape == (1, 4, 14, 2)


def test_is_counted_prints_parses_and_stays(program: Program) -> None:
    result = sparsify()(program).program
    assert result.level is Level.TRAINABLE
    assert parse_program(print_program(result), result.state_dict()) == result
    assert not sparsify()(result).modified
    assert PartitionBlocks()(result).program.has_regions
    before, after = cost(program).totals, cost(result).totals
    pixels, hidden = 8 * 12, 6
    coarse = pixels // 4 * hidden * (9 * 6 + 4)
    assert after.macs == before.macs + coarse + 2 * pixels * 6 * 3
    assert after.masked_gflops * 1e9 == pytest.approx(pixels * 6 * 3 * (9 + 25))


def test_trains_every_parameter(program: Program) -> None:
    """But the head of the coarse alpha, which only decides: no gradient passes a mask."""
    result = sparsify(**ALL)(program).program
    result.run(x=torch.rand(1, 6, 8, 12))["y"].sum().backward()
    for name, parameter in result.graph_module.named_parameters():
        assert name.startswith("sparsifier") == (parameter.grad is None), name


def test_a_loss_on_the_coarse_alpha_trains_its_layers(program: Program) -> None:
    result = sparsify(output="pha_s")(program).program
    outputs = result.run(x=torch.rand(1, 6, 8, 12))
    assert list(outputs) == ["y", "pha_s"] and outputs["pha_s"].shape == (1, 1, 4, 6)
    outputs["pha_s"].sum().backward()
    assert result.graph_module.get_parameter("sparsifier.conv.weight").grad is not None


def test_then_binarizes(program: Program) -> None:
    result = Binarize("bimatting", exclude_first=False)(sparsify(**ALL)(program).program).program
    paths = {str(call.target) for call in result.called_modules(BinaryConv2d)}
    assert {"fine.layers.0.weight_around_conv", "fine.layers.0.weight_centre_conv"} <= paths
    assert "head" not in paths
    binary = [node for node in masked_nodes(result) if node in result.called_modules(BinaryConv2d)]
    assert len(binary) == 2
    assert len(LowerBinary()(result).program.called_modules(SpatialMask)) == 1


def test_draws_from_the_seed(program: Program) -> None:
    weights = [
        sparsify()(program, Context(seed=seed)).program.state_dict()["sparsifier.conv.weight"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@torch.no_grad()
def test_rvm(rvm: Program) -> None:
    """Every 3x3 of the four finer blocks, gates too; a mask of ones leaves the matte as it was."""
    program = PartitionBlocks()(rvm).program
    result = dataclasses.replace(RVM_DECODER, rule="residual", threshold=0.0)(program)
    assert result.notes == "11 layers under a mask of decoder.decode4, at 4 sizes"
    inputs = {node.name: torch.rand(program.facts(node).sizes) for node in program.inputs}
    before, after = program.run(**inputs), result.program.run(**inputs)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("corse", "head", ("fine",)), "no region is called 'corse'; did you mean coarse"),
        (("coarse", "heed", ("fine",)), "no float layer is called 'heed'; did you mean head"),
        (("coarse", "head", ("fin",)), "'fin' matches no region; did you mean fine"),
        (("coarse", "head", ("fine", "coarse")), "region coarse is computed before the mask of coarse"),
        (("coarse", "coarse.layers.0", ("fine",)), "coarse.layers.0 is no 1x1 layer"),
        (("coarse", "head", ("fine",), 4), "head has 4 outputs, not one 4"),
        (("coarse", "head", ("head",)), "no layer of head can become a masked sum"),
    ],
)
def test_refuses_options_that_name_nothing(program: Program, options, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        SparsifyDecoder(*options)(program)


def test_refuses_a_program_without_regions(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="run partition-blocks before"):
        sparsify()(tiny)


@pytest.mark.parametrize(("earlier", "options"), [("quantize", "weights=4"), ("binarize", "method=bnn")])
def test_refuses_a_program_that_is_no_longer_float(program: Program, earlier: str, options: str) -> None:
    changed = parse_pipeline(f"{earlier}{{{options}}}").run(program, Context(clips=[torch.rand(1, 6, 8, 12)]))
    with pytest.raises(PreconditionError, match=f"run sparsify-decoder before {earlier}, not after it"):
        sparsify()(changed)


def test_its_text_is_its_options() -> None:
    made = SparsifyDecoder("a", "b.conv", ("c.*", "d"), rule="xor", threshold=0.25)
    text = "coarse=a head=b.conv regions=[c.*,d] rule=xor threshold=0.25"
    assert str(made) == f"sparsify-decoder{{{text}}}"
    assert parse_options(SparsifyDecoder, text, "sparsify-decoder") == made


class Branched(nn.Module):
    """The sum of branches that the first two layers of `fine` become, W1 the centre taps."""

    def __init__(self, net: "NormedNet", mask: float) -> None:
        super().__init__()
        self.net, self.mask = net, mask

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        y = F.interpolate(net.coarse(F.avg_pool2d(x, 2)), scale_factor=2, mode="nearest")
        close, everywhere = y, y
        for layer, norm in zip(net.fine.layers, net.fine.norms, strict=True):
            middle = layer.kernel_size[0] // 2
            close = norm(layer(close)).relu()
            centre = layer.weight[:, :, middle : middle + 1, middle : middle + 1]
            everywhere = norm(F.conv2d(everywhere, centre, layer.bias)).relu()
        return net.head(self.mask * close + everywhere)


class NormedBlock(nn.Module):
    """Layer, batch norm, ReLU, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, size, padding=size // 2) for size in (3, 5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return x


class NormedNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fine = NormedBlock()  # type: ignore[assignment]


@pytest.mark.parametrize(("mask", "value"), [(ALL, 1.0), (NONE, 0.0)])
@torch.no_grad()
def test_branches_are_summed_behind_the_last_activation(mask: dict[str, object], value: float) -> None:
    net = NormedNet().eval()
    for norm in net.fine.norms:
        norm.running_mean.normal_()
        norm.weight.uniform_(0.5, 2)
    result = sparsify(sum="branches", **mask)(program_of_blocks(net))
    assert result.notes == "2 layers under a mask of coarse, at 1 sizes"
    x = torch.randn(1, 6, 8, 12)
    torch.testing.assert_close(result.program.run(x=x)["y"], Branched(net, value)(x), rtol=1e-5, atol=1e-5)
    assert {"fine.layers.0_1x1.weight", "fine.norms.1_1x1.bias"} <= set(result.program.state_dict())
    assert not sparsify(sum="branches")(result.program).modified


class HeldBlock(nn.Module):
    """Two weights of one module, each with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.randn(6, 6, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.one, self.two):
            x = F.conv2d(x, weight, padding=1).relu()
        return x


class HeldNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fine = HeldBlock()  # type: ignore[assignment]


@torch.no_grad()
def test_weights_of_one_module_have_centres_of_their_own() -> None:
    net = HeldNet().eval()
    result = sparsify(sum="branches", **NONE)(program_of_blocks(net)).program
    x = torch.randn(1, 6, 8, 12)
    y = F.interpolate(net.coarse(F.avg_pool2d(x, 2)), scale_factor=2, mode="nearest")
    for weight in (net.fine.one, net.fine.two):
        y = F.conv2d(y, weight[:, :, 1:2, 1:2]).relu()
    torch.testing.assert_close(result.run(x=x)["y"], net.head(y), rtol=1e-5, atol=1e-5)


def test_branches_golden(golden) -> None:
    result = sparsify(sum="branches")(program_of_blocks(eighths(NormedNet()), "2*h", "2*w")).program
    for tensor in result.state_dict().values():
        tensor.copy_((tensor * 8).round() / 8)
    golden(print_program(result))


def program_of_blocks(net: nn.Module, height: int | str = 8, width: int | str = 12) -> Program:
    captured = capture(net.eval(), Signature((("x", (1, 6, height, width)),), ("y",)), "net")
    return PartitionBlocks(kinds=("Block", "NormedBlock", "HeldBlock"))(captured).program
