"""RVM through ONNX Runtime: float, one-bit and quantized, with the states carried."""

import onnx
import onnxruntime
import pytest
import torch

from mattecompress.backends import load_backend
from mattecompress.backends.onnx import Onnx
from mattecompress.backends.onnx.agreement import compare
from mattecompress.capturing.tracing import capture
from mattecompress.data.clips import procedural_clip
from mattecompress.data.sources import load_clips
from mattecompress.emission import emit_files
from mattecompress.models import build_model
from mattecompress.models.signatures import rvm_signature
from mattecompress.passes.set_resolution import SetResolution
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.running.stream import Stream
from tests.backends.onnx.nets import initializers, operators

matte = torch.ops.matte

FLOAT = 1e-4


@pytest.fixture(scope="module")
def open_rvm() -> Program:
    """With the shipped weights; batch, height and width open."""
    return capture(build_model("rvm-mobilenetv3"), rvm_signature("rvm-mobilenetv3"), "rvm")


@pytest.fixture(scope="module")
def rvm(open_rvm) -> Program:
    return SetResolution(64, 96)(open_rvm).program


def untrained(model: str, size: tuple[int, int], ratio: float = 1, **options) -> Program:
    torch.manual_seed(0)
    network = build_model(model, untrained=True, **options)
    fixed = {} if ratio == 1 else {"downsample_ratio": ratio}
    return capture(network, rvm_signature(model, size, ratio), model, fixed)


def test_float_rvm_over_three_frames(rvm):
    artifact = load_backend("onnx")().compile(rvm)
    ours, theirs = Stream(rvm), Stream(rvm, artifact.run)
    for image in procedural_clip(0, 0, 3, 64, 96).frames:
        expected, given = ours(image.unsqueeze(0)), theirs(image.unsqueeze(0))
        assert list(given) == list(rvm.output_names)
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=0, atol=FLOAT)


def test_open_sizes(open_rvm):
    artifact = Onnx().compile(open_rvm)
    for height, width in ((32, 48), (80, 64)):
        shapes = [(3, 1), (16, 2), (20, 4), (40, 8), (64, 16)]
        names = open_rvm.input_names
        inputs = {
            n: torch.rand(2, c, height // s, width // s) for n, (c, s) in zip(names, shapes, strict=True)
        }
        with torch.no_grad():
            expected = open_rvm.run(**inputs)
        for name, value in artifact.run(**inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=FLOAT)


@pytest.mark.parametrize(
    "text",
    ["rvm-bnn", "rvm-react,lower-binary", pytest.param("rvm-dorefa,lower-binary", marks=pytest.mark.slow)],
)
def test_one_bit_rvm(rvm, text):
    """Sums are integers and thresholds are the same, so signs turn nowhere."""
    program = parse_pipeline(text).run(rvm)
    artifact = Onnx(verify=False).compile(program)
    assert max(agreement.worst for agreement in compare(program, artifact, frames=3)) < FLOAT
    if "lower" in text:
        called = [name for name in operators(artifact) if name.startswith("matte::binary")]
        assert len(called) == len(program.find(matte.binary_conv2d.default)) + len(
            program.find(matte.binary_depthwise_conv2d.default)
        )
        assert len(called) > 50


def test_quantized_rvm(rvm):
    """Trainable: stored codes and QDQ pairs. Lowered: integer sums and stated roundings, so all bits agree."""
    clip = procedural_clip(0, 0, 2, 64, 96).frames
    text = "canonicalize,fold-batch-norm,quantize{weights=4 range=min-max}"
    program = parse_pipeline(text).run(rvm, Context(clips=[clip]))
    artifact = Onnx().compile(program)
    assert list(initializers(artifact).values()).count(onnx.TensorProto.INT4) > 70
    assert operators(artifact).count("QuantizeLinear") == operators(artifact).count("DequantizeLinear") / 2
    lowered = parse_pipeline("lower").run(program)
    artifact = Onnx().compile(lowered)
    assert operators(artifact).count("matte::quantized_conv2d") > 70
    assert max(agreement.worst for agreement in compare(lowered, artifact, frames=3)) == 0


@pytest.mark.slow
def test_the_built_model_gives_the_references_bits(shared_data, tmp_path):
    """Real weights and video, as a user gets it: `build --emit onnx`, a session with ONNX Runtime's own options."""
    size = (288, 512)
    model = build_model("rvm-mobilenetv3", shared_data / "rvm_mobilenetv3.safetensors")
    network = capture(model, rvm_signature("rvm-mobilenetv3", size), "rvm")
    clips = [procedural_clip(1000, 0, 4, *size).frames]
    program = parse_pipeline("mse{weights=8 activations=8}").run(network, Context(clips=clips))
    ((path, _),) = emit_files(program, "host", "onnx", tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return dict(zip(names, map(torch.from_numpy, session.run(names, arrays)), strict=True))

    lowered = parse_pipeline("lower").run(program)
    ours, theirs = Stream(lowered), Stream(lowered, run)
    (clip,) = load_clips(str(shared_data / "clips" / "dancers.mp4"), size, 1, 24)
    for frame in clip.frames:
        expected, given = ours(frame[None]), theirs(frame[None])
        assert all(torch.equal(given[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "refiner", ["deep_guided_filter", pytest.param("fast_guided_filter", marks=pytest.mark.slow)]
)
def test_refiners(refiner):
    program = untrained("rvm-mobilenetv3", (60, 84), 0.5, refiner=refiner)
    agreements = compare(program, Onnx(verify=False).compile(program), frames=3)
    assert max(agreement.worst for agreement in agreements) < FLOAT


@pytest.mark.slow
def test_resnet50():
    program = untrained("rvm-resnet50", (64, 96))
    agreements = compare(program, Onnx(verify=False).compile(program), frames=3)
    assert max(agreement.worst for agreement in agreements) < FLOAT
