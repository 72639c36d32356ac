"""`bimatting` and `bivm` over a captured RVM against the captured models of that name: same costs, same values."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mattecompress import api
from mattecompress.analysis.cost import Totals, cost
from mattecompress.facts import evaluate_size
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.elastic_shortcut import ElasticShortcut
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program

PAPER = (288, 512)
SMALL = (32, 48)
THRESHOLDS = 9184
"""Parameters of the models that nothing reads; checkpoints hold them."""
PIPELINES = {
    "bimatting": "bimatting",
    "bimatting-32bit": "bimatting{bits=32}",
    "bivm": "bivm",
    "bivm-32bit": "bivm{bits=32}",
}
EACH = [pytest.param(name, marks=[] if name == "bivm" else [pytest.mark.slow]) for name in PIPELINES]
RENAMED = (
    (r"aspp\.aspp2\.1\.bias", "aspp.aspp2.1_input.bias"),
    (r"aspp\.aspp2\.3\.", "aspp.aspp2.1."),
    (r"decoder\.decode4\.conv\.0\.", "sparsifier.conv_input."),
    (r"decoder\.decode4\.conv\.2\.", "sparsifier.conv."),
    (r"decoder\.decode4\.conv\.3\.", "sparsifier.norm."),
    (r"decoder\.decode4\.conv\.4\.", "sparsifier.conv_output."),
    (r"decoder\.decode4\.conv\.5\.", "sparsifier.activation."),
    (r"(decoder\.decode0\.conv)(_1x1)?\.5\.", r"\1.3\2."),
    (r"(decoder\.decode0\.conv)(_1x1)?\.6\.", r"\1.4\2."),
    (r"(.*\.(?:ih|hh|conv|aspp1))(_1x1)?\.0\.", r"\1.0\2_input."),
    (r"(.*\.(?:ih|hh|conv|aspp1))(_1x1)?\.2\.", r"\1.0\2."),
    (r"(.*\.(?:ih|hh))(_1x1)?\.3\.", r"\1.0\2_output."),
    (r"(.*\.(?:conv|aspp1))(_1x1)?\.3\.", r"\1.1\2."),
    (r"(.*\.(?:conv|aspp1))(_1x1)?\.4\.", r"\1.0\2_output."),
    (r"(.*\.(?:conv|aspp1))(_1x1)?\.5\.weight", r"\1.0\2_output.slope"),
)
"""Where the pipeline has the tensors of a model's decoder; the first that matches counts."""


def renamed(name: str) -> str:
    if name.startswith(("backbone.", "project_mat.")):
        return name
    for pattern, place in RENAMED:
        found = re.match(pattern, name)
        if found:
            return found.expand(place) + name[found.end() :]
    return name


def captured(name: str, size: tuple[int, int]) -> Program:
    torch.manual_seed(0)
    return api.capture(name, size=size, untrained=True)


@pytest.fixture(scope="module")
def piped() -> Callable[[str], Program]:
    rvm = captured("rvm-mobilenetv3", PAPER)
    made: dict[str, Program] = {}

    def pipe(name: str) -> Program:
        if name not in made:
            made[name] = parse_pipeline(PIPELINES[name]).run(rvm)
        return made[name]

    return pipe


def counted(totals: Totals) -> tuple[float, ...]:
    flops = (totals.macs, totals.binary_macs, totals.paper_gflops, totals.masked_gflops)
    return (*flops, totals.model_parameters)


@pytest.mark.parametrize("name", EACH)
def test_costs_what_the_model_costs(piped: Callable[[str], Program], name: str) -> None:
    """Section 8's figures, which tests of the models compare with; but for the thresholds that nothing reads."""
    ours, theirs = cost(piped(name)).totals, cost(captured(name, PAPER)).totals
    *flops, parameters = counted(theirs)
    assert counted(ours) == pytest.approx((*flops, parameters - THRESHOLDS))
    assert ours.paper_size_mib == pytest.approx(theirs.paper_size_mib - THRESHOLDS * 32 / 8 / 2**20)


@pytest.mark.slow
def test_weighs_what_the_paper_says(piped: Callable[[str], Program]) -> None:
    assert round(cost(piped("bimatting")).totals.paper_size_mib, 3) == 0.650


@torch.no_grad()
def disturb(program: Program) -> None:
    """Give a program biases and means that a trained network may have."""
    generator = torch.Generator().manual_seed(1)
    for key, value in program.state_dict().items():
        if key.endswith(("bias", "running_mean")):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_computes_what_the_model_computes(name: str) -> None:
    model = captured(name, SMALL)
    program = parse_pipeline(PIPELINES[name]).run(captured("rvm-mobilenetv3", SMALL))
    generator = torch.Generator().manual_seed(1)
    ours, theirs = program.state_dict(), model.state_dict()
    assert set(ours) == {renamed(name) for name in theirs}
    disturb(model)
    for key, value in theirs.items():
        ours[renamed(key)].copy_(value)
    inputs = {n.name: torch.rand(model.facts(n).sizes, generator=generator) for n in model.inputs}
    before, after = model.run(**inputs), program.run(**inputs)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_has_the_parts_of_the_model(piped: Callable[[str], Program]) -> None:
    one_bit, twin = piped("bivm"), piped("bivm-32bit")
    assert one_bit.level is twin.level is Level.TRAINABLE
    for program, layers in ((one_bit, len(captured("bivm", SMALL).called_modules(BinaryConv2d))), (twin, 0)):
        assert len(program.called_modules(BinaryConv2d)) == layers
        assert len(program.called_modules(ElasticShortcut)) == 44
        assert len(program.called_modules(SpatialMask)) == 1


@pytest.mark.slow
@torch.no_grad()
def test_lowers_to_bits() -> None:
    """Every one-bit layer is packed; what differs is roundings of batch norms that are folded.

    With biases that a trained network may have: those of a fresh one leave sums of signs at the thresholds.
    """
    program = parse_pipeline("bivm").run(captured("rvm-mobilenetv3", SMALL))
    disturb(program)
    lowered = parse_pipeline("lower{strict=true}").run(program)
    layers = program.called_modules(BinaryConv2d)
    packed = lowered.find(torch.ops.matte.binary_conv2d.default)
    masked = lowered.find(torch.ops.matte.masked_binary_conv2d.default)
    assert masked and len(packed) + len(masked) == len(layers)
    inputs = {node.name: torch.rand(program.facts(node).sizes) for node in program.inputs}
    before, after = program.run(**inputs), lowered.run(**inputs)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_of_open_size_and_through_the_refiner() -> None:
    torch.manual_seed(0)
    for program in (
        api.capture("rvm-mobilenetv3", untrained=True),
        api.capture("rvm-mobilenetv3", untrained=True, size=(64, 96), ratio=0.5),
    ):
        made = parse_pipeline("bivm").run(program)
        inputs: dict[str, Tensor] = {
            "src": torch.rand(1, 3, 64, 96),
            **{f"r{k}i": torch.zeros(_state(made, k)) for k in range(1, 5)},
        }
        assert made.run(**inputs)["pha"].shape == (1, 1, 64, 96)
    sized, model = cost(made).totals, cost(api.capture("bivm", untrained=True, size=(64, 96), ratio=0.5))
    assert sized.model_parameters == model.totals.model_parameters - THRESHOLDS
    assert sized.paper_gflops == pytest.approx(model.totals.paper_gflops)


def _state(program: Program, k: int) -> tuple[int, ...]:
    shapes = {str(node.target): program.facts(node).shape for node in program.inputs}
    symbols = {"n": 1, "h": 4, "w": 6}
    return tuple(evaluate_size(size, symbols) for size in shapes[f"r{k}i"])
