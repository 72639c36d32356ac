import re

import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.facts import Precision
from mattecompress.named_pipelines import Brecq, Mse, Ptq4vm, Qdrop
from mattecompress.options import OptionError
from mattecompress.passes.equalize_channels import EqualizeChannels
from mattecompress.passes.quantize import Quantize
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.quantization.equalization import Channels, best_factors, grouped
from mattecompress.running.feed import CalibrationError
from mattecompress.signature import Signature
from mattecompress.text import print_program
from tests.reconstruction.nets import FedBack, MobileNetV2, ResNet, TwoInputs, captured, clips_for

mul = torch.ops.aten.mul.Tensor
SIZES = 10.0 ** torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(4, 1, 1)


class Uneven(nn.Module):
    """Channels that differ by orders of magnitude, before a layer of some groups."""

    def __init__(self, activation: nn.Module, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.first, self.activation = nn.Conv2d(3, 4, 3, padding=1, bias=bias), activation
        self.second = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=bias)
        with torch.no_grad():
            self.first.weight *= SIZES[..., None]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


def uneven(activation: nn.Module, groups: int = 1, bias: bool = True) -> Program:
    torch.manual_seed(2)
    return capture(Uneven(activation, groups, bias), Signature((("x", (1, 3, 12, 16)),), ("y",)), "uneven")


def clips() -> list[Tensor]:
    return [torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(5))]


def noise(program: Program, reference: Program) -> float:
    (frames,) = clips()
    with torch.no_grad():
        pairs = [(program.run(x=frame)["y"], reference.run(x=frame)["y"]) for frame in frames.split(1)]
    return sum(float((found - expected).square().mean()) for found, expected in pairs)


@pytest.mark.parametrize("kind", [ResNet, MobileNetV2, TwoInputs, FedBack])
def test_computes_the_same(kind: type[nn.Module]) -> None:
    fed = clips_for(kind)
    program = parse_pipeline("canonicalize,fold-batch-norm").run(captured(kind), Context(clips=fed))
    result = EqualizeChannels()(program, Context(clips=fed))
    assert result.modified
    generator = torch.Generator().manual_seed(0)
    inputs = {
        str(node.target): torch.rand(program.facts(node).sizes, generator=generator)
        for node in program.inputs
    }
    for name, expected in program.run(**inputs).items():
        found = result.program.run(**inputs)[name]
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-4, msg="a product and a quotient rounded"
        )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardswish(), nn.Identity()])
def test_leaves_less_noise(activation: nn.Module, groups: int, bias: bool) -> None:
    program, context = uneven(activation, groups, bias), Context(clips=clips())
    result = EqualizeChannels()(program, context)
    assert noise(result.program, program) < 1e-8
    plain, equalized = (Quantize()(each, context).program for each in (program, result.program))
    assert noise(equalized, program) < noise(plain, program)


@pytest.mark.parametrize(("activation", "absorbs"), [(nn.ReLU(), 1), (nn.Identity(), 1), (nn.Hardswish(), 0)])
def test_the_convolution_before_takes_what_it_can(activation: nn.Module, absorbs: int) -> None:
    result = EqualizeChannels(gain=1.5)(uneven(activation), Context(clips=clips()))
    assert result.notes == f"1 of 2 convolutions, {absorbs} of them by the one before"
    assert len(result.program.find(mul)) == 1 - absorbs


def test_a_second_reader_keeps_the_values_it_had() -> None:
    class Branching(Uneven):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.activation(self.first(x))
            return self.second(y), y

    torch.manual_seed(2)
    program = capture(Branching(nn.ReLU()), Signature((("x", (1, 3, 12, 16)),), ("y", "z")), "branching")
    result = EqualizeChannels(gain=1.5)(program, Context(clips=clips())).program
    frame = clips()[0][:1]
    assert torch.equal(result.run(x=frame)["z"], program.run(x=frame)["z"])
    assert len(result.find(mul)) == 1


def test_the_multiplication_belongs_to_its_reader() -> None:
    program = parse_pipeline("canonicalize,partition-blocks").run(uneven(nn.Hardswish()), Context())
    result = EqualizeChannels(gain=1.5)(program, Context(clips=clips())).program
    (product,) = result.find(mul)
    (reader,) = product.users
    assert result.facts(product).region == result.facts(reader).region is not None


def test_leaves_channels_of_like_sizes_alone() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish())
    program = capture(net, Signature((("x", (1, 3, 12, 16)),), ("y",)), "even")
    assert not EqualizeChannels(gain=1.5)(program, Context(clips=clips())).modified


def test_leaves_what_is_excluded_alone() -> None:
    assert not EqualizeChannels(gain=1.5, exclude=("second",))(
        uneven(nn.ReLU()), Context(clips=clips())
    ).modified


def test_wants_no_clips_where_there_is_no_convolution() -> None:
    program = capture(nn.ReLU(), Signature((("x", (1, 3, 12, 16)),), ("y",)), "relu")
    assert not EqualizeChannels()(program).modified


def test_channels_that_are_zero_get_a_number() -> None:
    channels = Channels()
    channels.add(
        torch.rand(1, 4, 6, 6) * torch.tensor([0.0, 0.01, 1, 30]).reshape(4, 1, 1), 64, torch.Generator()
    )
    weight = grouped(torch.randn(5, 4, 3, 3), 1)
    factors = best_factors(channels, weight, Precision(8, 8), 1.1)
    assert factors is not None and factors.isfinite().all() and factors.gt(0).all()


def test_nothing_is_better_than_no_noise() -> None:
    channels = Channels()
    channels.add(torch.zeros(1, 4, 6, 6), 64, torch.Generator())
    assert best_factors(channels, grouped(torch.zeros(5, 4, 1, 1), 1), Precision(8, 8), 1.1) is None


def test_the_seed_decides() -> None:
    one, same = (
        EqualizeChannels()(uneven(nn.ReLU()), Context(clips=clips(), seed=1)).program.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_golden(tiny: Program, golden) -> None:
    """Without the digests of values: what was measured on the clips is rounded as the processor adds."""
    text = print_program(EqualizeChannels()(tiny, Context(clips=clips())).program)
    golden(re.sub(r" [0-9a-f]{12}$", "", text, flags=re.MULTILINE))


def test_refuses_a_quantized_program() -> None:
    quantized = Quantize()(uneven(nn.ReLU()), Context(clips=clips())).program
    with pytest.raises(PreconditionError, match="before quantize"):
        EqualizeChannels()(quantized, Context(clips=clips()))


def test_refuses_values_that_are_not_finite() -> None:
    program = uneven(nn.ReLU())
    with torch.no_grad():
        program.state_dict()["first.weight"].fill_(float("inf"))
    with pytest.raises(CalibrationError, match="not finite"):
        EqualizeChannels()(program, Context(clips=clips()))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gain": 1.0}, "above 1"), ({"weights": 9}, "weights=9"), ({"first": 1}, "first=1")],
)
def test_refuses_options(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EqualizeChannels(**options)


def test_the_fast_recipe_of_ptq4vm_begins_with_it_and_baselines_where_asked() -> None:
    with_it = [
        pipeline.passes()
        for pipeline in (
            Mse(equalize=True),
            Qdrop(equalize=None),
            Ptq4vm(),
            Ptq4vm(recipe="paper", equalize=True),
        )
    ]
    without = [
        pipeline.passes()
        for pipeline in (Mse(), Brecq(), Qdrop(), Ptq4vm(recipe="paper"), Ptq4vm(equalize=False))
    ]
    assert all("equalize-channels{weights=8 activations=8},quantize" in text for text in with_it)
    assert not any("equalize-channels" in text for text in without)
