"""BiVM with numbers that a trained network may have, through `lower` and every backend, frame after frame with states."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mattecompress as mc
from mattecompress.backends.onnx import Onnx
from mattecompress.backends.reference import Reference
from mattecompress.backends.tvm.backend import Freestanding, Tvm
from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.backends.tvm.targets import find_target
from mattecompress.capturing.tracing import capture
from mattecompress.data.video import read_frames
from mattecompress.models.bimatting import BiVM, bivm
from mattecompress.models.signatures import fixed_options, rvm_signature
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.running.stream import Stream
from mattecompress.signature import Signature

matte = torch.ops.matte
Run = Callable[..., dict[str, Tensor]]
CLOSE = 1e-5
"""Roundings of sums in another order; a sign that turns would show as far more."""


@pytest.fixture(scope="module")
def network() -> BiVM:
    torch.manual_seed(0)
    model, generator = bivm().eval(), torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.75, 1.25, generator=generator)
        elif name.endswith(("factor", "prelu1.weight", "prelu2.weight")):
            value.add_(torch.rand(value.shape, generator=generator) / 5)
    return model


def captured(network: BiVM, height: int, width: int, batch: int = 1) -> Program:
    signature = rvm_signature("bivm", (height, width))
    shapes = tuple((name, (batch, *shape[1:])) for name, shape in signature.inputs)
    signature = Signature(shapes, signature.outputs, signature.states)
    return capture(network, signature, "bivm", fixed_options("bivm"))


@pytest.fixture(scope="module")
def program(network: BiVM) -> Program:
    return captured(network, 64, 96)


@pytest.fixture(scope="module")
def lowered(program: Program) -> Program:
    return parse_pipeline("lower{strict=true}").run(program)


def frames_of(program: Program, run: Run, count: int) -> list[dict[str, Tensor]]:
    """The outputs of frames of noise, each with the states of the one before; the first with zeros."""
    inputs = dict(zip(program.input_names, program.inputs, strict=True))
    states = {pair.input: torch.zeros(program.facts(inputs[pair.input]).sizes) for pair in program.states}
    generator, results = torch.Generator().manual_seed(1), []
    for _ in range(count):
        src = torch.rand(program.facts(inputs["src"]).sizes, generator=generator)
        with torch.no_grad():
            results.append({name: value.clone() for name, value in run(src=src, **states).items()})
        states = {pair.input: results[-1][pair.output] for pair in program.states}
    return results


def assert_agree(program: Program, one: Run, other: Run, count: int, bound: float = CLOSE) -> None:
    for expected, found in zip(frames_of(program, one, count), frames_of(program, other, count), strict=True):
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= bound, name


def test_every_masked_layer_is_computed_in_tiles(lowered: Program) -> None:
    assert lowered.level is Level.LOWERED
    assert len(lowered.find(matte.masked_binary_conv2d.default)) == 10
    assert len(lowered.find(matte.masked_conv2d.default)) == 1
    assert len(lowered.find(matte.scatter_tiles.default)) == 10
    assert len(lowered.find(matte.mask_tiles.default)) == 5


def test_lowered_equals_trainable(program: Program, lowered: Program) -> None:
    """Every bit."""
    assert_agree(program, Reference().compile(program).run, lowered.run, 4, bound=0)


def test_the_first_frame_has_no_state(network: BiVM, lowered: Program) -> None:
    (found,) = frames_of(lowered, lowered.run, 1)
    src = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(src, coarse_outputs=False)
    for value, name in zip(expected, found, strict=True):
        assert (found[name] - value).abs().max() <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "batch"), [(50, 70, 1), (33, 47, 1), (32, 48, 3)])
def test_odd_sizes_and_batches(network: BiVM, height: int, width: int, batch: int) -> None:
    program = captured(network, height, width, batch)
    lowered = parse_pipeline("lower{strict=true}").run(program)
    assert_agree(program, program.run, lowered.run, 2)
    assert_agree(program, program.run, Onnx().compile(lowered).run, 2)


def test_onnx_runtime_agrees(program: Program, lowered: Program) -> None:
    assert_agree(program, program.run, Onnx().compile(lowered).run, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "batch"), [(64, 96, 1), (50, 70, 1), (32, 48, 3)])
def test_compiled_code_agrees(network: BiVM, height: int, width: int, batch: int) -> None:
    program = captured(network, height, width, batch)
    lowered = parse_pipeline("lower{strict=true}").run(program)
    assert "serial" not in rules_used(lower(lowered, find_target("host"))).values()
    assert_agree(program, program.run, Tvm().compile(lowered).run, 3)


@pytest.mark.slow
def test_trained_weights_over_a_clip(shared_data: Path) -> None:
    """Video with the states carried; every bit before and after lowering, and alpha within 1e-4 everywhere else."""
    trained = mc.capture("bivm", size=(288, 512))
    lowered = parse_pipeline("lower{strict=true}").run(trained)
    clip = torch.stack(list(read_frames(shared_data / "clips/dancers.mp4", limit=12, size=(288, 512))))
    backends = {"trainable": Reference().compile(trained), "lowered": Reference().compile(lowered)}
    backends |= {"onnx": Onnx().compile(lowered), "tvm": Tvm().compile(lowered)}
    alphas = {
        name: torch.cat([frame["pha"].clone() for frame in Stream(lowered, artifact.run).over(clip)])
        for name, artifact in backends.items()
    }
    assert torch.equal(alphas["trainable"], alphas["lowered"])
    for name in ("onnx", "tvm"):
        close = (alphas[name] - alphas["trainable"]).abs() <= 1e-4
        assert close.float().mean() >= 0.999, name


@pytest.mark.slow
@pytest.mark.needs("qemu-aarch64")
def test_programs_on_arm_give_this_machines_bits(lowered: Program, tmp_path: Path) -> None:
    made = {}
    for target in ("host", "cortex-a76"):
        (tmp_path / target).mkdir()
        made[target] = Freestanding.of(lowered, target).link(tmp_path / target).run
    assert_agree(lowered, lowered.run, made["host"], 3)
    assert_agree(lowered, made["host"], made["cortex-a76"], 3, bound=0)
