import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mattecompress.analysis.propagation import propagate
from mattecompress.capturing.tracing import capture
from mattecompress.facts import Facts
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig, Method
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.lower_binary import LowerBinary
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.ops.cases import Convolution, convolutions

METHODS: tuple[Method, ...] = ("bnn", "dorefa", "recu", "react", "bimatting")
FORMS: tuple[tuple[Method, int], ...] = (*((method, 1) for method in METHODS), ("dorefa", 2))
"""Methods and bits of activations."""
EVERYTHING = {"exclude_first": False, "exclude_last": False}
aten, matte = torch.ops.aten, torch.ops.matte
CONVOLUTIONS = (matte.binary_conv2d.default, matte.binary_depthwise_conv2d.default)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomize(program: Program, seed: int = 0) -> Program:
    """Give batch norms, thresholds, scales and biases values that a trained network may have."""
    program, generator = program.clone(), torch.Generator().manual_seed(seed)
    for call in program.called_modules():
        module = program.module(call)
        for name, tensor in module.state_dict().items():
            if name == "running_var" or (name == "weight" and tensor.ndim == 1):
                tensor.uniform_(0.5, 3, generator=generator)
            elif name in ("bias", "running_mean", "activation_bias", "scale"):
                tensor.normal_(0, 0.5, generator=generator)
    return program


def single(module: BinaryConv2d, shape: tuple[int, ...]) -> Program:
    """A program of one trainable layer."""
    root, graph = nn.Module(), fx.Graph()
    root.layer = module.eval()
    x = graph.placeholder("x")
    call = graph.call_module("layer", (x,))
    graph.output((call,))
    x.meta["facts"] = call.meta["facts"] = Facts(shape, module.weight.dtype)
    return propagate(Program("single", fx.GraphModule(root, graph).eval(), ("y",)))


def configured(case: Convolution, form: tuple[Method, int], depthwise: bool, border: int) -> BinaryConv2d:
    method, activations = form
    groups = case.channels if depthwise else case.groups
    config = BinaryConvConfig(
        inputs=groups * (1 if depthwise else case.channels),
        outputs=groups * (1 if depthwise else case.outputs),
        kernel=case.kernel,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=groups,
        bias=case.seed % 2 == 0,
        method=method,
        border=border,  # type: ignore[arg-type]
        activations=activations,  # type: ignore[arg-type]
    )
    module, generator = BinaryConv2d(config), torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=generator) / 4)
    return module


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(FORMS), st.booleans(), st.sampled_from([0, 1]))
def test_integers_are_equal(
    case: Convolution, form: tuple[Method, int], depthwise: bool, border: int
) -> None:
    """Bits, sums and scaled sums exactly, for values that lie on thresholds."""
    module = configured(case, form, depthwise, border)
    shape = (case.batch, module.config.inputs, case.height, case.width)
    x = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(case.seed + 1)) / 4
    x = x / 1.5 if module.config.activations == 2 else x
    program = single(module, shape)
    lowered = LowerBinary(strict=True)(program).program
    planes = [node for node in lowered.graph.nodes if node.target in CONVOLUTIONS]
    assert len(planes) == module.config.activations
    assert all((node.target is CONVOLUTIONS[1]) is module.config.is_depthwise for node in planes)
    sums = planes[0] if len(planes) == 1 else next(iter(planes[0].users))
    integers = fx.Interpreter(_ending_at(lowered, sums)).run(x)
    assert integers.dtype == torch.int32
    with torch.no_grad():
        assert torch.equal(integers.float(), module.integers(x))
        assert torch.equal(lowered.run(x=x)["y"], program.run(x=x)["y"])


def _ending_at(program: Program, node: fx.Node) -> fx.GraphModule:
    copy = program.clone()
    last = next(other for other in copy.graph.nodes if other.name == node.name)
    copy.graph.output_node().args = (last,)
    return copy.graph_module


def program_of(net: nn.Module, channels: int = 4) -> Program:
    return capture(net.eval(), Signature((("x", (1, channels, 6, 6)),), ("y",)), "net")


@pytest.mark.parametrize("method", METHODS)
def test_lowers_a_network(tiny: Program, method: Method) -> None:
    program = randomize(Binarize(method)(tiny).program)
    result = LowerBinary(strict=True)(program)
    lowered = result.program
    assert result.modified
    assert result.notes == "1 convolutions packed, reading 1 packings"
    assert lowered.level is Level.LOWERED
    assert {"middle.0.weight_bits", "middle.0.shift"} <= set(lowered.state_dict())
    assert "middle.0.weight" not in lowered.state_dict()
    assert parse_program(print_program(lowered), lowered.state_dict()) == lowered
    again = LowerBinary()(lowered)
    assert not again.modified and again.program is lowered
    inputs = {"src": torch.rand(1, 3, 12, 16), "r1i": torch.rand(1, 4, 6, 8)}
    with torch.no_grad():
        before, after = program.run(**inputs), lowered.run(**inputs)
    for name in before:
        assert torch.equal(after[name], before[name])


def eighths(program: Program) -> Program:
    """With numbers whose sums are exact in any order, so that digests are the same on every processor."""
    for tensor in program.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_((tensor * 8).round() / 8)
    return program


def test_golden(tiny: Program, golden) -> None:
    program = eighths(randomize(Binarize("react")(tiny).program))
    golden(print_program(LowerBinary()(program).program))


def test_golden_two_bits(tiny: Program, golden) -> None:
    program = eighths(randomize(Binarize("dorefa", activations=2)(tiny).program))
    golden(print_program(LowerBinary()(program).program))


def test_planes_are_packed_once() -> None:
    program = Binarize("dorefa", activations=2, **EVERYTHING)(program_of(Branches())).program
    assert LowerBinary()(program).notes.startswith("4 convolutions packed, reading 6 packings")


def test_golden_beside_a_batch_norm(golden) -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 6, 3, groups=6)
    )
    program = eighths(randomize(Binarize("bnn", **EVERYTHING)(program_of(net)).program))
    golden(print_program(LowerBinary()(program).program))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [False, True])
def test_leaves_the_batch_norm_and_every_bit(method: Method, bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6))
    program = randomize(Binarize(method, **EVERYTHING)(program_of(net)).program)
    result = LowerBinary(strict=True)(program)
    assert len(result.program.called_modules(BatchNorm2d)) == 1
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])


class Branches(nn.Module):
    """Two layers read one tensor; one layer is used twice, behind two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.twice = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.twice(self.left(x))) + self.two(self.twice(self.right(x)))


def branches(method: Method) -> Program:
    return Binarize(method, **EVERYTHING)(program_of(Branches())).program


def test_equal_bits_are_packed_once() -> None:
    result = LowerBinary()(branches("react"))
    assert result.notes.startswith("4 convolutions packed, reading 3 packings")
    left = branches("react")
    threshold = left.graph_module.get_submodule("left").activation_bias
    assert isinstance(threshold, Tensor)
    threshold.data += 1
    assert LowerBinary()(left).notes.startswith("4 convolutions packed, reading 4 packings")


def test_blocks_do_not_share_bits() -> None:
    """Else one block would come to depend on another."""
    program = branches("bnn")
    for node in program.called_modules(BinaryConv2d):
        node.meta["facts"] = program.facts(node).but(region=str(node.target))
    result = LowerBinary()(program)
    assert result.notes.startswith("4 convolutions packed, reading 4 packings")
    regions = {result.program.facts(node).region for node in result.program.find(matte.pack_signs.default)}
    assert regions == {"left", "right", "twice"}


def test_a_shared_layer_keeps_one_of_each_tensor() -> None:
    program = randomize(branches("react"))
    lowered = LowerBinary()(program).program
    names = [name for name in lowered.state_dict() if name.startswith("twice")]
    assert names == [f"twice.{name}" for name in ("scale", "shift", "threshold", "weight_bits")]
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(lowered.run(x=x)["y"], program.run(x=x)["y"])


def test_omits_what_changes_nothing() -> None:
    """bnn has no scale; one multiplication stays where nothing else makes floats of the integers."""
    for bias, expected in ((True, [aten.add.Tensor]), (False, [aten.mul.Tensor])):
        net = nn.Conv2d(4, 4, 1, bias=bias)
        lowered = LowerBinary()(Binarize("bnn", **EVERYTHING)(program_of(net)).program).program
        targets = [node.target for node in lowered.operations() if node.target.namespace == "aten"]
        assert targets == expected
        assert lowered.facts(lowered.outputs["y"]).dtype is torch.float32


def unbatched(method: Method, **changes: Any) -> Program:
    config = BinaryConvConfig(6, 4, (3, 3), (2, 1), (1, 0), groups=2, bias=True, method=method)
    return single(BinaryConv2d(dataclasses.replace(config, **changes)), (6, 7, 8))


@pytest.mark.parametrize(("method", "activations"), FORMS)
@pytest.mark.parametrize("border", [0, 1])
def test_falls_back_to_float_and_says_so(method: Method, activations: int, border: int) -> None:
    program = randomize(unbatched(method, border=border, activations=activations))
    result = LowerBinary()(program)
    reason = "layer (it reads f32[6,7,8], packing reads (N,C,H,W))"
    assert result.notes.endswith(f"in float: {reason}")
    assert not [node for node in result.program.operations() if node.target.namespace == "matte"]
    x = torch.randint(-4, 5, (6, 7, 8), generator=torch.Generator().manual_seed(1)) / 4
    with torch.no_grad():
        assert torch.equal(result.program.run(x=x)["y"], program.run(x=x)["y"])


def test_falls_back_on_doubles() -> None:
    module = BinaryConv2d(BinaryConvConfig(3, 2, (1, 1), method="react")).double()
    program = single(module, (1, 3, 2, 2))
    result = LowerBinary()(program)
    assert result.notes.endswith("in float: layer (it reads f64, packing reads f32)")
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=1e-7, atol=1e-7, msg="scale is float32"
        )


def test_strict_refuses_what_would_fall_back() -> None:
    with pytest.raises(PreconditionError, match=r"cannot pack layer \(it reads f32\[6,7,8\]"):
        LowerBinary(strict=True)(unbatched("bnn"))


def test_open_sizes_stay_open(tiny_open: Program) -> None:
    lowered = LowerBinary(strict=True)(Binarize("dorefa")(tiny_open).program).program
    (sums,) = lowered.find(matte.binary_conv2d.default)
    assert lowered.facts(sums).shape == (1, 8, "h", "w")


@pytest.mark.parametrize(
    ("pipeline", "packings"),
    [
        ("rvm-react", 75),
        pytest.param("rvm-bnn", 75, marks=pytest.mark.slow),
        pytest.param("rvm-dorefa", 75, marks=pytest.mark.slow),
        pytest.param("rvm-dorefa{activations=2}", 150, marks=pytest.mark.slow),
        pytest.param("rvm-recu", 75, marks=pytest.mark.slow),
    ],
)
def test_rvm_computes_the_same(rvm: Program, pipeline: str, packings: int) -> None:
    """Three frames with recurrent states, every bit."""
    program = randomize(parse_pipeline(pipeline).run(rvm))
    result = LowerBinary(strict=True)(program)
    assert result.notes == f"75 convolutions packed, reading {packings} packings"
    lowered = result.program
    assert parse_program(print_program(lowered), lowered.state_dict()) == lowered
    generator = torch.Generator().manual_seed(3)
    states = {state.input: torch.zeros(_sizes(program, state.input)) for state in program.states}
    for _ in range(3):
        src = torch.rand(1, 3, 64, 96, generator=generator)
        with torch.no_grad():
            before, after = program.run(src=src, **states), lowered.run(src=src, **states)
        for name in before:
            assert torch.equal(after[name], before[name])
        states = {state.input: before[state.output] for state in program.states}


def _sizes(program: Program, name: str) -> tuple[int, ...]:
    inputs = dict(zip(program.input_names, program.inputs, strict=True))
    return program.facts(inputs[name]).sizes


class Shifted(nn.Module):
    """Two layers that read one value, each shifted by a bias of the network's own, as in BiMatting."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.ParameterList(torch.randint(-4, 5, (1, 4, 1, 1)) / 4 for _ in range(2))
        config = BinaryConvConfig(4, 6, (3, 3), padding=(1, 1), method="bimatting", threshold=False)
        self.layers = nn.ModuleList(BinaryConv2d(config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer(x + bias) for layer, bias in zip(self.layers, self.biases, strict=True))
        return first + second


@torch.no_grad()
def test_a_bias_before_a_layer_becomes_its_threshold() -> None:
    """Also for values that lie on it; nothing is added any more."""
    program = program_of(Shifted())
    lowered = LowerBinary(strict=True)(program).program
    packings = lowered.find(matte.pack_signs.default)
    assert [node.args[0] for node in packings] == [lowered.inputs[0]] * 2
    assert not lowered.find(aten.add.Tensor)[:-1]
    x = torch.randint(-4, 5, (1, 4, 6, 6)) / 4
    assert torch.equal(lowered.run(x=x)["y"], program.run(x=x)["y"])


class Offset(nn.Module):
    """What is added is computed, or one number for all channels."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed
        self.bias = nn.Parameter(torch.full((1,), 0.25))
        config = BinaryConvConfig(4, 4, (1, 1), method="bimatting", threshold=False)
        self.layer = BinaryConv2d(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + (x.abs() if self.computed else self.bias))


@pytest.mark.parametrize("computed", [True, False])
@torch.no_grad()
def test_other_sums_stay(computed: bool) -> None:
    program, x = program_of(Offset(computed)), torch.randn(1, 4, 6, 6)
    lowered = LowerBinary(strict=True)(program).program
    assert len(lowered.find(aten.add.Tensor)) == 1
    assert torch.equal(lowered.run(x=x)["y"], program.run(x=x)["y"])
