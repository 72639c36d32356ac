"""RVM with real or random weights, through ONNX Runtime: three frames with the states carried."""

import pytest
import torch

from mattecompress.backends import load_backend
from mattecompress.backends.onnx import Onnx
from mattecompress.backends.onnx.agreement import compare
from mattecompress.capture import capture
from mattecompress.models import build_model
from mattecompress.models.signatures import rvm_signature
from mattecompress.program import Program
from mattecompress.stream import Stream

FLOAT = 1e-4


@pytest.fixture(scope="module")
def rvm(shared_data) -> Program:
    path = shared_data / "rvm_mobilenetv3.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {shared_data}")
    network = build_model("rvm-mobilenetv3", path)
    return capture(network, rvm_signature("rvm-mobilenetv3", (64, 96)), "rvm")


def untrained(model: str, size: tuple[int, int] | None, ratio: float = 1, **options) -> Program:
    torch.manual_seed(0)
    network = build_model(model, untrained=True, **options)
    fixed = {} if ratio == 1 else {"downsample_ratio": ratio}
    return capture(network, rvm_signature(model, size, ratio), model, fixed)


def test_float_rvm_over_three_frames(rvm):
    artifact = load_backend("onnx")().compile(rvm)
    ours, theirs = Stream(rvm), Stream(rvm, artifact.run)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        frame = torch.rand(1, 3, 64, 96, generator=generator)
        expected, given = ours(frame), theirs(frame)
        assert list(given) == list(rvm.output_names)
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=0, atol=FLOAT)


def test_open_sizes():
    program = untrained("rvm-mobilenetv3", None)
    artifact = Onnx().compile(program)
    for height, width in ((32, 48), (80, 64)):
        shapes = [(3, 1), (16, 2), (20, 4), (40, 8), (64, 16)]
        names = program.input_names
        inputs = {
            n: torch.rand(2, c, height // s, width // s) for n, (c, s) in zip(names, shapes, strict=True)
        }
        with torch.no_grad():
            expected = program.run(**inputs)
        for name, value in artifact.run(**inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=FLOAT)


@pytest.mark.parametrize("refiner", ["deep_guided_filter", "fast_guided_filter"])
def test_refiners(refiner):
    program = untrained("rvm-mobilenetv3", (60, 84), 0.5, refiner=refiner)
    agreements = compare(program, Onnx(verify=False).compile(program), frames=3)
    assert max(agreement.worst for agreement in agreements) < FLOAT


@pytest.mark.slow
def test_resnet50():
    program = untrained("rvm-resnet50", (64, 96))
    agreements = compare(program, Onnx(verify=False).compile(program), frames=3)
    assert max(agreement.worst for agreement in agreements) < FLOAT
