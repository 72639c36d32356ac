import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.options import parse_options
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.shift_activations import ShiftActivations
from mattecompress.pipeline import PreconditionError
from mattecompress.program import AbsentParameter, Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

EVERYTHING = {"exclude_first": False, "exclude_last": False}


class Net(nn.Module):
    """A layer with a batch norm and a ReLU, one with a sigmoid, one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.gate = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y * self.gate(y).sigmoid())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def program_of(net: nn.Module) -> Program:
    return capture(net.eval(), Signature((("x", (1, 3, 6, 8)),), ("y",)), "net")


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return program_of(Net())


def test_golden(tiny_open: Program, golden) -> None:
    golden(print_program(ShiftActivations(behind=("middle.*", "stem.*"))(tiny_open).program))


def test_computes_the_shifted_network(program: Program) -> None:
    shift = ShiftActivations(behind=("body.*", "gate"), **EVERYTHING)
    result = shift(program)
    assert result.notes == "3 layers and 2 activations shifted"
    for name, parameter in result.program.graph_module.named_parameters():
        if name.partition(".")[2] in ("bias", "slope", "0_input.bias", "0_output.bias"):
            parameter.data.normal_()
    values = result.program.state_dict()
    x, net = torch.rand(1, 3, 6, 8), Net().eval()
    net.load_state_dict({name: values[name] for name in net.state_dict()})
    with torch.no_grad():
        y = net.body[1](net.body[0](x + values["body.0_input.bias"])) + values["body.0_output.bias"]
        y = torch.prelu(y, values["body.0_output.slope"])
        gate = torch.sigmoid(net.gate(y + values["gate_input.bias"]) + values["gate_output.bias"])
        expected = net.head(y * gate + values["head_input.bias"])
        torch.testing.assert_close(result.program.run(x=x)["y"], expected)
    assert not shift(result.program).modified


def test_changes_nothing_at_first_but_the_slope(program: Program) -> None:
    x = torch.rand(1, 3, 6, 8)
    result = ShiftActivations(behind=("*",), slope=0.0, **EVERYTHING)(program)
    with torch.no_grad():
        assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])
    assert result.program.level is Level.FLOAT
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program


def test_a_bias_is_the_threshold_of_a_one_bit_layer(program: Program) -> None:
    """What `binarize` learns itself, as an operation in front of it."""
    inside = Binarize("bimatting", **EVERYTHING)(program).program
    outside = Binarize("bimatting", **EVERYTHING)(ShiftActivations(**EVERYTHING)(program).program).program
    for result, threshold in ((inside, True), (outside, False)):
        configs = [result.module(call).config for call in result.called_modules(BinaryConv2d)]
        assert [config.threshold for config in configs] == 3 * [threshold]
    shifts = {"body.0": 3, "gate": 4, "head": 4}
    for path, channels in shifts.items():
        bias = torch.randn(channels)
        inside.graph_module.get_parameter(f"{path}.activation_bias").data.copy_(bias)
        outside.graph_module.get_parameter(f"{path}_input.bias").data.copy_(bias.view(1, -1, 1, 1))
    x = torch.randn(1, 3, 6, 8)
    assert torch.equal(inside.run(x=x)["y"], outside.run(x=x)["y"])
    assert not ShiftActivations(**EVERYTHING)(inside).modified


def test_counts_what_was_not_captured(program: Program) -> None:
    program.source = type(program.source)(
        "net", (AbsentParameter("refiner.0.weight", (4, 6, 1, 1)), AbsentParameter("refiner.1.weight", (4,)))
    )
    result = ShiftActivations(behind=("refiner.0",))(program).program
    added = {part.name: part.shape for part in result.source.absent}
    assert added.items() >= {("refiner.0_input.bias", (6,)), ("refiner.0_output.slope", (4,))}
    binary = Binarize("bimatting", exclude_first=False, absent=("refiner.0",))(result).program
    assert {part.name for part in binary.source.absent} == set(added)
    alone = Binarize("bimatting", exclude_first=False, absent=("refiner.0",))(program).program
    assert "refiner.0.activation_bias" in {part.name for part in alone.source.absent}


def test_leaves_ends_and_exceptions_alone(program: Program) -> None:
    result = ShiftActivations()(program)
    assert result.notes == "1 layers and 0 activations shifted"
    assert not ShiftActivations(exclude=("gate",))(program).modified
    with pytest.raises(PreconditionError, match="'gat' matches no convolution; did you mean gate"):
        ShiftActivations(exclude=("gat",))(program)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu()).relu()


def test_calls_of_one_layer_share_their_biases() -> None:
    result = ShiftActivations(behind=("conv",), **EVERYTHING)(program_of(Twice()))
    assert result.notes == "2 layers and 2 activations shifted"
    assert [*result.program.state_dict()] == [
        "conv.bias",
        "conv.weight",
        "conv_input.bias",
        "conv_output.bias",
        "conv_output.slope",
    ]


class TwoWeights(nn.Module):
    """One module that has the weights of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Conv2d(3, 4, 1, bias=False)
        self.cell.update = nn.Parameter(torch.rand(2, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x).relu()
        return nn.functional.conv2d(y, self.cell.update).relu()


def test_weights_of_one_module_have_biases_of_their_own() -> None:
    result = ShiftActivations(behind=("cell",), **EVERYTHING)(program_of(TwoWeights()))
    sizes = {name: tuple(value.shape) for name, value in result.program.state_dict().items()}
    assert sizes["cell_input.bias"] == (1, 3, 1, 1) and sizes["cell_output.bias"] == (1, 4, 1, 1)
    assert sizes["cell_update_input.bias"] == (1, 4, 1, 1)
    assert sizes["cell_update_output.bias"] == (1, 2, 1, 1) and sizes["cell_update_output.slope"] == (2,)
    assert result.program.run(x=torch.rand(1, 3, 6, 8))["y"].shape == (1, 2, 6, 8)


def test_its_text_is_its_options() -> None:
    made = ShiftActivations(exclude=("head.*",), behind=("a.*", "b"), slope=0.5)
    text = "exclude=[head.*] behind=[a.*,b] slope=0.5"
    assert str(made) == f"shift-activations{{{text}}}"
    assert parse_options(ShiftActivations, text, "shift-activations") == made
