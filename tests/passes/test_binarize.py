import re

import pytest
import torch
from torch import Tensor, nn

from mattecompress.analysis.cost import cost
from mattecompress.capturing.tracing import capture
from mattecompress.facts import Precision
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.binary import BinaryConv2d, Method
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.lower_binary import LowerBinary
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program, StatePair
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

METHODS: tuple[Method, ...] = ("bnn", "dorefa", "recu", "react", "bimatting")
EVERYTHING = {"exclude_first": False, "exclude_last": False}
BINARY_WEIGHTS = 3_715_120


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def program_of(net: nn.Module, channels: int = 4) -> Program:
    return capture(net.eval(), Signature((("x", (1, channels, 6, 6)),), ("y",)), "net")


def layers(program: Program) -> dict[str, BinaryConv2d]:
    calls = program.called_modules(BinaryConv2d)
    return {str(call.target): program.module(call) for call in calls}  # type: ignore[misc]


def weights_of(program: Program) -> int:
    return sum(layer.weight.numel() for layer in layers(program).values())


def test_golden(tiny_open: Program, golden) -> None:
    golden(print_program(Binarize("react")(tiny_open).program))


@pytest.mark.parametrize("method", METHODS)
def test_replaces_the_middle(tiny: Program, method: Method) -> None:
    result = Binarize(method)(tiny)
    program = result.program
    assert result.modified
    assert result.notes == "1 of 3 convolutions in one bit; float: stem.0 (first), head (last)"
    (call,) = program.called_modules(BinaryConv2d)
    assert program.facts(call).precision == Precision(1, 1)
    assert program.facts(call).scope == call.target == "middle.0"
    assert program.level is Level.TRAINABLE
    assert len(program.called_modules(BatchNorm2d)) == 1
    for name in ("middle.0.weight", "middle.0.bias"):
        assert torch.equal(program.state_dict()[name], tiny.state_dict()[name])
    assert not program.module(call).training


@pytest.mark.parametrize("method", METHODS)
def test_is_idempotent_and_prints_and_parses(tiny: Program, method: Method) -> None:
    once = Binarize(method)(tiny).program
    assert not Binarize(method)(once).modified
    assert parse_program(print_program(once), once.state_dict()) == once
    assert not Binarize(method, **EVERYTHING)(Binarize(method, **EVERYTHING)(tiny).program).modified


@pytest.mark.parametrize("method", METHODS)
def test_computes_the_same_on_bits(method: Method) -> None:
    """Where activations are bits and weights are one magnitude, nothing is lost."""
    net = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    half = torch.where(torch.arange(net.weight[0].numel()) % 2 == 0, 1.0, -1.0).reshape(net.weight[0].shape)
    with torch.no_grad():
        net.weight.copy_((1.0 if method == "bnn" else 0.25) * half.expand_as(net.weight))
    program = program_of(net)
    x = torch.randint(0, 2, (1, 4, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    x = x if method == "dorefa" else 2 * x - 1
    binarized = Binarize(method, **EVERYTHING)(program).program
    torch.testing.assert_close(
        binarized.run(x=x)["y"],
        program.run(x=x)["y"],
        rtol=1e-6,
        atol=1e-6,
        msg="the scale is a mean of equal numbers, and multiplies after the sum",
    )


def test_two_bit_activations(tiny: Program) -> None:
    program = parse_pipeline("binarize{method=dorefa activations=2}").run(tiny)
    (call,) = program.called_modules(BinaryConv2d)
    assert program.facts(call).precision == Precision(1, 2)
    assert layers(program)["middle.0"].config.activations == 2
    assert parse_program(print_program(program), program.state_dict()) == program


def test_refuses_two_bits_of_another_method(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="activations=2 needs method=dorefa"):
        Binarize("react", activations=2)(tiny)


def test_gradients_reach_latent_weights(tiny_open: Program) -> None:
    program = Binarize("react")(tiny_open).program
    program.graph_module.train()
    outputs = program.run(src=torch.rand(1, 3, 8, 8), r1i=torch.zeros(1, 4, 4, 4))
    outputs["pha"].sum().backward()
    (layer,) = layers(program).values()
    for parameter in layer.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


class Net(nn.Module):
    """A layer used twice, with another before and after."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.first, self.shared, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x))
        again = torch.conv2d(x, self.shared.weight, self.shared.bias, dilation=self.dilation)
        return self.last(again.relu())


def test_a_shared_layer_becomes_one_module() -> None:
    program = Binarize("bnn")(program_of(Net())).program
    assert len(program.called_modules(BinaryConv2d)) == 2
    assert list(layers(program)) == ["shared"]
    assert parse_program(print_program(program), program.state_dict()) == program


def test_a_layer_shared_at_two_geometries_stays_float() -> None:
    program = program_of(Net(dilation=2))
    with pytest.raises(
        PreconditionError, match=r"shared \(shares its weight with a convolution of another geo"
    ):
        Binarize("bnn")(program)


def test_an_excluded_call_keeps_its_shared_layer_float() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.shared(self.shared(x))))

    result = Binarize("bnn")(program_of(Twice()))
    assert list(layers(result.program)) == ["first"]
    assert "shared (first), shared (shares its weight with %conv2d, first), last (last)" in result.notes


def test_ends_are_found_by_the_graph() -> None:
    program = program_of(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    assert list(layers(Binarize("bnn")(program).program)) == ["2"]
    assert list(layers(Binarize("bnn", exclude_last=False)(program).program)) == ["2", "3"]
    assert list(layers(Binarize("bnn", exclude_first=False)(program).program)) == ["0", "2"]
    assert list(layers(Binarize("bnn", ("2",), False, False)(program).program)) == ["0", "3"]


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.remember, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [self.last(y + h), self.remember(y)]


def test_a_layer_that_only_a_state_reads_is_not_the_last() -> None:
    shape = (1, 4, 6, 6)
    signature = Signature((("x", shape), ("h", shape)), ("y", "h_next"), (StatePair("h", "h_next"),))
    result = Binarize("bnn")(capture(Memory().eval(), signature, "memory"))
    assert result.notes == "1 of 3 convolutions in one bit; float: first (first), last (last)"
    assert list(layers(result.program)) == ["remember"]


def test_a_weight_at_the_top_gets_a_path_of_its_own() -> None:
    program = Binarize("bnn", **EVERYTHING)(program_of(nn.Conv2d(4, 4, 1))).program
    assert set(program.state_dict()) == {"weight_conv.weight", "weight_conv.bias"}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Module()
        self.part.one, self.part.two = (nn.Parameter(torch.rand(4, 4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(torch.conv2d(x, self.part.one), self.part.two)


def test_weights_side_by_side_get_a_path_each() -> None:
    program = Binarize("bnn", **EVERYTHING)(program_of(Functional())).program
    assert set(program.state_dict()) == {"part.one_conv.weight", "part.two_conv.weight"}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "its weight or bias is computed"),
        (nn.Identity(), "the program has none"),
    ],
)
def test_refuses_what_has_no_weight_of_its_own(net: nn.Module, reason: str) -> None:
    program = program_of(nn.Sequential(net, nn.ReLU()))
    with pytest.raises(PreconditionError, match=f"no float convolution can become one-bit: .*{reason}"):
        Binarize("bnn", **EVERYTHING)(program)


def test_refuses_a_pattern_that_matches_nothing(tiny: Program) -> None:
    expected = re.escape("exclude pattern 'midle.0' matches no convolution; did you mean middle.0?")
    with pytest.raises(PreconditionError, match=expected):
        Binarize("bnn", exclude=("midle.0",))(tiny)


def test_refuses_when_nothing_is_left(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match=r"stem.0 \(first\), middle.0 \(excluded\), head \(last\)"):
        Binarize("bnn", exclude=("middle.*",))(tiny)


def test_refuses_a_lowered_program(tiny: Program) -> None:
    lowered = LowerBinary()(Binarize("bnn")(tiny).program).program
    with pytest.raises(PreconditionError, match="lowered already: binarize before lowering"):
        Binarize("bnn")(lowered)


def test_rvm_as_the_paper_counts_it(rvm_open: Program) -> None:
    """BiVM Table II, row RVM-BNN: 0.50 GFLOPs and 0.57 MiB at 512x288."""
    program = parse_pipeline("set-resolution{height=288 width=512},rvm-bnn").run(rvm_open)
    absent = sum(part.bits == 1 and torch.Size(part.shape).numel() for part in program.source.absent)
    assert weights_of(program) + absent == BINARY_WEIGHTS
    totals = cost(program).totals
    assert totals.model_parameters == 3_748_633
    assert totals.paper_gflops == pytest.approx(0.5060, abs=5e-5)
    assert totals.paper_size_mib == pytest.approx(0.5707, abs=5e-5)
    floats = {str(node.args[1].target) for node in program.find(torch.ops.aten.conv2d.default)}
    assert floats == {
        "backbone.features.0.0.weight",
        "decoder.decode0.conv.3.weight",
        "project_mat.conv.weight",
    }


@pytest.mark.slow
def test_rvm_with_its_refiner() -> None:
    signature = rvm_signature("rvm-mobilenetv3", (64, 96), 0.5)
    program = capture(RVM().eval(), signature, "rvm-mobilenetv3", {"downsample_ratio": 0.5})
    program = parse_pipeline("rvm-bnn").run(program)
    assert weights_of(program) == BINARY_WEIGHTS
    assert {path for path in layers(program) if path.startswith("refiner")} == {
        "refiner.conv.0",
        "refiner.conv.3",
    }
