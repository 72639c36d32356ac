import re
from pathlib import Path

import networkx
import pytest
import torch
from torch import Tensor, nn

from mattecompress.analysis.regions import region_graph
from mattecompress.capturing.tracing import capture
from mattecompress.data.video import read_frames
from mattecompress.facts import Precision
from mattecompress.models.checkpoints import load_checkpoint
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.options import OptionError
from mattecompress.passes.quantize import Quantize, layer_path
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.running.feed import CalibrationError
from mattecompress.running.stream import Stream
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

conv2d = torch.ops.aten.conv2d.default


def clips(height: int = 12, width: int = 16, frames: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(frames, 3, height, width, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def folded(tiny: Program) -> Program:
    return parse_pipeline("canonicalize,fold-batch-norm").run(tiny)


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(clips=clips())


def quantizers(program: Program) -> dict[str, FakeQuantize]:
    calls = program.called_modules(FakeQuantize)
    return {str(call.target): program.module(call) for call in calls}  # type: ignore[misc]


def precisions(program: Program) -> dict[str, str]:
    return {layer_path(node): str(program.facts(node).precision) for node in program.find(conv2d)}


def program_of(net: nn.Module, channels: int = 3) -> Program:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return capture(net, Signature((("x", (1, channels, 6, 6)),), ("y",)), "net")


def test_golden(tiny_open: Program, context: Context, golden) -> None:
    """A program of open sizes, which stay open. Ranges depend on the last bit of convolutions, so not on show."""
    text = print_program(parse_pipeline("fold-batch-norm,quantize{weights=4}").run(tiny_open, context))
    golden(re.sub(r"(_quantizer\.\S+ \S+) \w+", r"\1 ...", text))


def test_puts_a_quantizer_before_each_operand(folded: Program, context: Context) -> None:
    result = Quantize()(folded, context)
    program = result.program
    assert result.modified and result.notes == "3 convolutions in w8a8, 3 activation tensors"
    assert program.level is Level.TRAINABLE
    for node in program.find(conv2d):
        x, weight = program.module(node.args[0]), program.module(node.args[1])
        assert isinstance(x, FakeQuantize) and x.config == QuantizerConfig(8)
        channels = program.tensor(node.args[1].args[0]).shape[0]
        assert isinstance(weight, FakeQuantize) and weight.config == QuantizerConfig(8, True, channels)
        assert program.facts(node).precision == Precision(8, 8)
    paths = {
        f"{layer}.{role}"
        for layer in ("stem.0", "middle.0", "head")
        for role in ("input_quantizer", "weight_quantizer")
    }
    assert set(quantizers(program)) == paths
    for name, value in folded.state_dict().items():
        assert torch.equal(program.state_dict()[name], value)


@pytest.mark.parametrize("method", ["mse", "min-max"])
def test_computes_nearly_the_same(folded: Program, context: Context, method: str) -> None:
    program = parse_pipeline(f"quantize{{range={method}}}").run(folded, context)
    frames = clips()[0]
    for before, after in zip(Stream(folded).over(frames), Stream(program).over(frames), strict=True):
        for name, value in before.items():
            error = (after[name] - value).abs().max() / value.abs().max()
            assert error < 0.05, f"{name}: a handful of 8-bit steps"


def test_nothing_left_to_do_is_no_change(folded: Program, context: Context) -> None:
    once = Quantize(weights=4)(folded, context).program
    again = Quantize(weights=4)(once, Context())
    assert not again.modified and again.program is once
    assert not Quantize(exclude=("*",))(folded, Context()).modified


def test_text_round_trip(folded: Program, context: Context) -> None:
    program = parse_pipeline("quantize{weights=3 activations=5 first=none exclude=[head,stem.*]}").run(
        folded, context
    )
    assert parse_program(print_program(program), program.state_dict()) == program
    text = print_program(program)
    assert "pass quantize{weights=3 activations=5 first=none exclude=[head,stem.*]} seed=0" in text


def test_two_runs_give_the_same_bytes(tiny_open: Program) -> None:
    folded = parse_pipeline("fold-batch-norm").run(tiny_open)
    one, two = (
        print_program(Quantize()(folded, Context(clips=clips(240, 320), seed=3)).program) for _ in range(2)
    )
    assert one == two


def test_bits_of_first_and_last(folded: Program, context: Context) -> None:
    def bits(text: str) -> list[str]:
        return list(precisions(parse_pipeline(text).run(folded, context)).values())

    assert bits("quantize{weights=4}") == ["w8a8", "w4a8", "w4a8"]
    assert bits("quantize{weights=4 first=none}") == ["w4a8", "w4a8", "w4a8"]
    assert bits("quantize{weights=2 activations=4 last=6}") == ["w8a8", "w2a4", "w6a6"]


def test_excluded_layers_stay_float(folded: Program, context: Context) -> None:
    result = Quantize(exclude=("middle.*",))(folded, context)
    assert result.notes == "2 convolutions in w8a8, 2 activation tensors; middle.0 stays float: excluded"
    assert precisions(result.program) == {"stem.0": "w8a8", "middle.0": "None", "head": "w8a8"}


def test_the_rest_can_be_quantized_later(folded: Program, context: Context) -> None:
    first = Quantize(weights=8, exclude=("head",))(folded, context).program
    second = Quantize(weights=4)(first, context).program
    assert list(precisions(second).values()) == ["w8a8", "w8a8", "w4a8"]


@pytest.fixture(scope="module")
def in_regions(folded: Program) -> Program:
    return parse_pipeline("partition-blocks").run(folded)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[head:w4a6]", ["w8a8", "w8a8", "w4a6"]),
        ("[*:w4,stem.*:a5]", ["w8a5", "w4a8", "w4a8"]),
        ("[*:w4a4,middle.0:w3]", ["w4a4", "w3a8", "w4a4"]),
        ("[block.0:w2a3]", ["w2a3", "w8a8", "w8a8"]),
        ("[block.1:float]", ["w8a8", "None", "w8a8"]),
    ],
)
def test_rules_by_layer_and_region(
    in_regions: Program, context: Context, rules: str, expected: list[str]
) -> None:
    """The last that matches decides; `block.1` is the region of layer `middle.0`."""
    program = parse_pipeline(f"quantize{{rules={rules}}}").run(in_regions, context)
    assert list(precisions(program).values()) == expected
    for node in program.find(conv2d):
        if (precision := program.facts(node).precision) is not None:
            bits = [program.module(operand).config.bits for operand in node.args[:2]]
            assert bits == [precision.activation_bits, precision.weight_bits]


def test_a_layer_left_float_by_a_rule_is_named(in_regions: Program, context: Context) -> None:
    result = Quantize(rules=("block.1:float",))(in_regions, context)
    assert result.notes.endswith("middle.0 stays float: rule block.1")


def test_refuses_a_rule_that_matches_nothing(in_regions: Program, context: Context) -> None:
    with pytest.raises(
        PreconditionError, match="rule pattern 'midle.0' matches no convolution; did you mean mid"
    ):
        Quantize(rules=("midle.0:w4a4",))(in_regions, context)


@pytest.mark.parametrize("rule", ["head", "head:", ":w4a4", "head:4", "head:w4b4", "head:w1", "head:a9"])
def test_refuses_a_rule_that_says_nothing(rule: str) -> None:
    with pytest.raises(OptionError, match=f"rule '{rule}': "):
        Quantize(rules=(rule,))


def test_kinds_of_codes_and_scales(folded: Program, context: Context) -> None:
    options = "weight-codes=asymmetric weight-scales=tensor activation-codes=symmetric"
    program = parse_pipeline(f"quantize{{{options}}}").run(folded, context)
    for node in program.find(conv2d):
        x, weight = (program.module(operand) for operand in node.args[:2])
        assert x.config == QuantizerConfig(8, symmetric=True)
        assert weight.config == QuantizerConfig(8) and weight.scale.shape == ()
    assert parse_program(print_program(program), program.state_dict()) == program
    for before, after in zip(Stream(folded).over(clips()[0]), Stream(program).over(clips()[0]), strict=True):
        for name, value in before.items():
            assert (after[name] - value).abs().mean() / value.abs().max() < 0.02, name


class Fork(nn.Module):
    """Two convolutions and a sum read one tensor; two convolutions share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.right(self.left(y) + self.stem(y) + y)


def test_readers_share_a_quantizer() -> None:
    program = Quantize()(program_of(Fork()), Context(clips=[torch.rand(2, 3, 6, 6)])).program
    stem, left, again, _ = program.find(conv2d)
    assert left.args[0] is again.args[0]
    assert stem.args[1] is again.args[1]
    assert set(quantizers(program)) == {
        "stem.input_quantizer",
        "stem.weight_quantizer",
        "left.input_quantizer",
        "left.weight_quantizer",
        "right.input_quantizer",
        "right.weight_quantizer",
    }
    (add, _) = program.find(torch.ops.aten.add.Tensor)
    assert stem in program.find(torch.ops.aten.add.Tensor)[1].args
    assert add.args == (left, again)


def test_a_shared_layer_has_a_quantizer_for_each_input() -> None:
    layer = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    program = Quantize()(program_of(net), Context(clips=[torch.rand(2, 3, 6, 6)])).program
    roles = [path.partition(".")[2] for path in quantizers(program)]
    assert roles == ["input_quantizer", "weight_quantizer", "input_quantizer_1"]


class Weightless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight.abs())


def test_computed_weights_stay_float() -> None:
    assert not Quantize()(program_of(Weightless())).modified


def test_blocks_stay_convex(rvm: Program) -> None:
    program = parse_pipeline("fold-batch-norm,partition-blocks").run(rvm)
    before = region_graph(program)
    result = Quantize(range="min-max")(program, Context(clips=clips(64, 96, 1)))
    assert result.notes == "78 convolutions in w8a8, 78 activation tensors"
    assert networkx.is_directed_acyclic_graph(region_graph(result.program))
    regions = {result.program.facts(call).region for call in result.program.called_modules(FakeQuantize)}
    assert regions <= set(before.nodes)


@pytest.mark.parametrize("option", ["weights", "activations", "first", "last"])
@pytest.mark.parametrize("bits", [1, 9])
def test_refuses_impossible_bits(option: str, bits: int) -> None:
    with pytest.raises(OptionError, match=f"{option}={bits}: a quantizer has 2 to 8 bits"):
        Quantize(**{option: bits})


def test_refuses_unfolded_batch_norms(tiny: Program, context: Context) -> None:
    with pytest.raises(PreconditionError, match="run fold-batch-norm before quantize"):
        Quantize()(tiny, context)


def test_refuses_a_pattern_that_matches_nothing(folded: Program, context: Context) -> None:
    with pytest.raises(PreconditionError, match="'midle.0' matches no convolution; did you mean middle.0"):
        Quantize(exclude=("midle.0",))(folded, context)


def test_asks_for_clips(folded: Program) -> None:
    with pytest.raises(CalibrationError, match="add --calibration"):
        Quantize()(folded)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "limit"), [("", 10), ("{weights=4}", 30)])
def test_real_rvm_keeps_its_alpha(shared_data: Path, options: str, limit: float) -> None:
    """Mean absolute error of alpha, times 1000, on frames that calibration did not see: 4.4 and 16.1 were measured."""
    frames = torch.stack(list(read_frames(shared_data / "clips/dancers.mp4", limit=56, size=(144, 256))))
    net = RVM().eval()
    load_checkpoint(net, shared_data / "rvm_mobilenetv3.safetensors", "rvm-mobilenetv3")
    program = capture(net, rvm_signature("rvm-mobilenetv3", (144, 256)), "rvm-mobilenetv3")
    steps = parse_pipeline(f"canonicalize,fold-batch-norm,partition-blocks,quantize{options}")
    quantized = steps.run(program, Context(clips=[frames[0:8:2], frames[48:56:2]]))
    unseen = frames[16:28]
    expected, found = (
        torch.cat([outputs["pha"] for outputs in Stream(p).over(unseen)]) for p in (program, quantized)
    )
    assert expected.mean() > 0.05
    assert 1000 * float((found - expected).abs().mean()) < limit
