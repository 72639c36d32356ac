import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.passes.cast_half import CastHalf
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program

conv2d = torch.ops.aten.conv2d.default


@pytest.fixture(scope="module")
def folded(tiny: Program) -> Program:
    return FoldBatchNorm()(tiny).program


def frame_of(program: Program) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(node.target): torch.rand(program.facts(node).sizes, generator=generator)
        for node in program.inputs
    }


def test_golden(folded: Program, golden) -> None:
    golden(print_program(CastHalf()(folded).program))


def test_computes_the_same_to_float16(folded: Program) -> None:
    frame = frame_of(folded)
    half = CastHalf()(folded).program.run(**frame)
    for name, expected in folded.run(**frame).items():
        assert half[name].dtype == expected.dtype
        torch.testing.assert_close(half[name], expected, rtol=4e-3, atol=4e-3)


def test_onnx_computes_the_same(folded: Program) -> None:
    pytest.importorskip("onnxruntime")
    from mattecompress.backends import load_backend
    from mattecompress.backends.onnx.agreement import HALF_TOLERANCE, compare

    half = CastHalf()(folded).program
    for agreement in compare(half, load_backend("onnx")().compile(half)):
        assert agreement.relative <= HALF_TOLERANCE


def test_is_idle_on_its_own_result(folded: Program) -> None:
    assert not CastHalf()(CastHalf()(folded).program).modified


def test_excluded_layers_stay(folded: Program) -> None:
    result = CastHalf(exclude=("head",))(folded)
    types = [result.program.facts(node).dtype for node in result.program.find(conv2d)]
    assert types == [torch.float16, torch.float16, torch.float32]
    assert "1 in float32: head" in result.notes


@pytest.mark.parametrize("refiner", ["fast_guided_filter", "deep_guided_filter"])
def test_the_guided_filter_stays_in_float32(refiner: str) -> None:
    torch.manual_seed(0)
    signature = rvm_signature("rvm-mobilenetv3", (128, 192), 0.25)
    captured = capture(RVM(refiner=refiner).eval(), signature, "rvm", {"downsample_ratio": 0.25})
    program = CastHalf()(FoldBatchNorm()(captured).program).program
    for node in program.operations():
        if node.target in (torch.ops.aten.sub.Tensor, torch.ops.aten.avg_pool2d.default):
            facts, refines = program.facts(node), program.facts(node).scope.startswith("refiner")
            assert not refines or facts.dtype is torch.float32, node.name
    (last,) = [node for node in program.find(conv2d) if "project_mat" in program.facts(node).scope]
    assert program.facts(last).dtype is torch.float16


def test_refuses_modules(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="run fold-batch-norm before"):
        CastHalf()(tiny)


def test_refuses_lowered_programs(folded: Program) -> None:
    clip = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    lowered = parse_pipeline("mse,lower").run(folded, Context(clips=[clip]))
    with pytest.raises(PreconditionError, match="is lowered: run cast-half on the float program"):
        CastHalf()(lowered)


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.conv.weight, 7e4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_refuses_weights_out_of_range() -> None:
    program = capture(Large(), Signature((("x", (1, 1, 2, 2)),), ("y",)), "large")
    with pytest.raises(PreconditionError, match="@conv.weight holds 70000 and float16 ends at 65504"):
        CastHalf()(program)
    assert CastHalf(exclude=("conv",))(program).modified is False


class Making(nn.Module):
    """Multiplies by a tensor that it makes anew for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * torch.full((1, 1, 4, 4), 0.5)
        return y


def test_casts_what_the_network_makes() -> None:
    torch.manual_seed(0)
    program = capture(Making(), Signature((("x", (1, 3, 4, 4)),), ("y",)), "making")
    result = CastHalf()(program)
    assert result.notes == "2 operations in float16"
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=4e-3, atol=4e-3)
    assert not CastHalf()(result.program).modified


class Naming(nn.Module):
    """Names the type of its softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        weights: Tensor = y.softmax(1, dtype=torch.float32)
        return (weights * y).relu()


def test_an_operation_that_names_its_type_keeps_it() -> None:
    torch.manual_seed(0)
    program = capture(Naming(), Signature((("x", (1, 3, 4, 4)),), ("y",)), "naming")
    result = CastHalf()(program)
    assert result.notes is not None and result.notes.startswith("3 operations in float16; 1 in float32")
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=4e-3, atol=4e-3)
    assert not CastHalf()(result.program).modified
