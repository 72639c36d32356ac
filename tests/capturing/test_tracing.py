from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mattecompress.analysis.cost import cost
from mattecompress.capturing.tracing import CaptureError, capture
from mattecompress.models import build_model
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.modules.elastic_shortcut import ElasticShortcut, ElasticShortcutConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program, StatePair
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program


def test_computes_the_same(tiny: Program, tiny_net: nn.Module) -> None:
    source, state = torch.rand(1, 3, 12, 16), torch.rand(1, 4, 6, 8)
    with torch.no_grad():
        expected = tiny_net(source, state)
    found = tiny.run(src=source, r1i=state)
    assert list(found) == ["fgr", "pha", "r1o"]
    for value, other in zip(found.values(), expected, strict=True):
        assert torch.equal(value, other)


def test_open_sizes_fit_other_sizes(tiny_open: Program, tiny_net: nn.Module) -> None:
    assert tiny_open.facts(tiny_open.inputs[0]).shape == (1, 3, "2*h", "2*w")
    source, state = torch.rand(1, 3, 20, 30), torch.rand(1, 4, 10, 15)
    with torch.no_grad():
        expected = tiny_net(source, state)
    for value, other in zip(tiny_open.run(src=source, r1i=state).values(), expected, strict=True):
        assert torch.equal(value, other)


def test_trains_through_the_program(tiny_open: Program) -> None:
    program = tiny_open.clone()
    outputs = program.run(src=torch.rand(1, 3, 8, 8), r1i=torch.rand(1, 4, 4, 4))
    outputs["r1o"].sum().backward()
    gradients = {name: p.grad for name, p in program.graph_module.named_parameters()}
    assert gradients["stem.0.weight"] is not None and gradients["stem.0.weight"].abs().sum() > 0


def test_raises_batch_norm_and_keeps_names(tiny: Program, tiny_net: nn.Module) -> None:
    (norm,) = tiny.called_modules(BatchNorm2d)
    assert norm.target == "stem.1"
    assert tiny.level is Level.FLOAT
    assert set(tiny.state_dict()) == set(tiny_net.state_dict())


def test_absent_parameters_are_counted() -> None:
    program = capture(RVM().eval(), rvm_signature("rvm-mobilenetv3", (32, 48)), "rvm-mobilenetv3")
    absent = {part.name for part in program.source.absent}
    assert "project_seg.conv.weight" in absent and "refiner.conv.6.bias" in absent
    assert sum(torch.Size(part.shape).numel() for part in program.source.absent) == 3_748_633 - 3_747_808


def test_downsample_ratio_runs_the_refiner() -> None:
    model = RVM().eval()
    signature = rvm_signature("rvm-mobilenetv3", (64, 96), 0.5)
    program = capture(model, signature, "rvm-mobilenetv3", {"downsample_ratio": 0.5})
    inputs = {name: torch.rand(shape) for name, shape in signature.inputs}
    with torch.no_grad():
        expected = model(*inputs.values(), downsample_ratio=0.5)
    assert torch.equal(program.run(**inputs)["pha"], expected[1])


class Calibrated(BinaryConv2d):
    """A one-bit layer that also keeps a tensor it does not read."""

    def __init__(self) -> None:
        super().__init__(BinaryConvConfig(4, 4, (3, 3), padding=(1, 1), method="bimatting"))
        self.unused = nn.Parameter(torch.zeros(3))


class OneBit(nn.Module):
    """A registered module called twice, one never called, one with two inputs, one without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.never = Calibrated(), Calibrated()
        self.join = ElasticShortcut(ElasticShortcutConfig(3, 4, initial=0.5))
        self.mask = SpatialMask(SpatialMaskConfig("residual"))
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.join(self.shared(self.shared(self.stem(x))), x)
        return y * self.mask(y[:, :1])


@pytest.fixture
def one_bit() -> tuple[OneBit, Program]:
    torch.manual_seed(0)
    net = OneBit().eval()
    return net, capture(net, Signature((("x", ("n", 3, "h", "w")),), ("y",)), "one-bit")


def test_calls_registered_modules(one_bit: tuple[OneBit, Program]) -> None:
    net, program = one_bit
    assert [str(node.target) for node in program.called_modules()] == ["shared", "shared", "join", "mask"]
    assert type(program.module(program.called_modules()[0])) is BinaryConv2d
    assert program.level is Level.TRAINABLE
    assert set(program.state_dict()) == {
        "join.factor",
        "shared.activation_bias",
        "shared.weight",
        "stem.bias",
        "stem.weight",
    }
    assert parse_program(print_program(program), program.state_dict()) == program
    for shape in ((2, 3, 6, 8), (1, 3, 1, 1), (1, 3, 7, 5)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(program.run(x=x)["y"], net(x))


def test_trains_registered_modules_on_their_own(one_bit: tuple[OneBit, Program]) -> None:
    net, program = one_bit
    program.run(x=torch.randn(1, 3, 6, 8))["y"].sum().backward()
    gradients = {name: p.grad for name, p in program.graph_module.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert isinstance(net.shared(torch.randn(1, 4, 3, 3)), Tensor)


def test_counts_what_registered_modules_hold_beside(one_bit: tuple[OneBit, Program]) -> None:
    _, program = one_bit
    bits = {part.name: part.bits for part in program.source.absent}
    assert bits == {
        "shared.unused": 32,
        "never.weight": 1,
        "never.activation_bias": 32,
        "never.unused": 32,
    }


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_names_the_line_that_blocks() -> None:
    signature = Signature((("x", (1, 2)),), ("y",))
    with pytest.raises(CaptureError, match=r"test_tracing\.py:\d+ in forward"):
        capture(Branching(), signature, "branching")


def test_inputs_may_be_called_as_operations_are() -> None:
    program = capture(nn.ReLU(), Signature((("relu", (1, 2)),), ("y",)), "relu")
    assert program.run(relu=torch.tensor([[-1.0, 2.0]]))["y"].tolist() == [[0, 2]]


def test_refuses_states_of_another_shape() -> None:
    signature = Signature((("x", (1, 2)), ("h", (1, 1))), ("y",), (StatePair("h", "y"),))
    with pytest.raises(CaptureError, match=r"state y is f32\[1,2\], its input f32\[1,1\]"):
        capture(Sum(), signature, "sum")


def test_counts_outputs() -> None:
    with pytest.raises(CaptureError, match="yields 1 outputs, 2 names were given: a, b"):
        capture(nn.ReLU(), Signature((("x", (1, 2)),), ("a", "b")), "relu")


def test_counts_what_a_checkpoint_left_out(tmp_path: Path) -> None:
    kept = {
        name: value
        for name, value in RVM().state_dict().items()
        if not name.startswith(("refiner", "project_seg"))
    }
    save_file(kept, tmp_path / "matting.safetensors")
    model = build_model("rvm-mobilenetv3", tmp_path / "matting.safetensors")
    program = capture(model, rvm_signature("rvm-mobilenetv3", (32, 48)), "rvm-mobilenetv3")
    totals = cost(parse_pipeline("rvm-react").run(program)).totals
    assert cost(program).totals.model_parameters == 3_748_633
    assert totals.paper_size_mib > totals.size_mib


class Sum(nn.Module):
    """Takes as many inputs as it is given."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return sum(inputs[1:], inputs[0])


def test_captures_any_number_of_inputs() -> None:
    size = (1, 3, "2*h", 8)
    program = capture(Sum(), Signature((("a", size), ("b", size)), ("out",)), "sum")
    a, b = torch.rand(2, 1, 3, 6, 8)
    assert torch.equal(program.run(a=a, b=b)["out"], a + b)


def test_refuses_more_shapes_than_inputs() -> None:
    size = (1, 3, 8, 8)
    with pytest.raises(CaptureError, match="2 shapes were given, the network takes fewer inputs"):
        capture(nn.ReLU(), Signature((("a", size), ("b", size)), ("out",)), "net")


@torch.no_grad()
def test_what_is_contiguous_for_a_view_stays_computable() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            cut = x.view(1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).contiguous()
            return cut.view(-1, 3, 4, 4)

    program, x = (
        capture(Windows(), Signature((("x", (1, 3, 8, 8)),), ("y",)), "windows"),
        torch.rand(1, 3, 8, 8),
    )
    assert torch.equal(program.run(x=x)["y"], Windows()(x))


def test_where_a_tensor_lives_is_left_open() -> None:
    class Ramp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(4, device=x.device)

    program = capture(Ramp(), Signature((("x", (2, 4)),), ("y",)), "ramp")
    assert "device" not in print_program(program)


def test_an_input_beyond_all_memory_is_refused() -> None:
    with pytest.raises(CaptureError, match="an input of 1x3x1048576x1048576 does not fit into memory"):
        capture(nn.Conv2d(3, 1, 3), Signature((("x", (1, 3, 1 << 20, 1 << 20)),), ("y",)), "wide")
