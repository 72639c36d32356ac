"""What the post-training pipelines make, in every backend: the reference's bits, and files of few bytes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mattecompress.backends import Artifact
from mattecompress.capturing.tracing import capture
from mattecompress.data.clips import procedural_clip
from mattecompress.emission import emit_files
from mattecompress.models import build_model
from mattecompress.models.signatures import rvm_signature
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.preparation import compile_program, lower
from mattecompress.program import Level, Program
from mattecompress.running.stream import Stream
from tests.reconstruction.nets import FedBack, captured, clips_for

PIPELINES = [
    pytest.param("brecq{weights=4 iterations=8}", marks=pytest.mark.slow),
    "qdrop{weights=4 activations=4 iterations=8}",
    "ptq4vm{weights=4 iterations=8 epochs=2}",
    "ptq4vm{weights=8 iterations=8 epochs=2 apply-to=weights}",
]
RVM_PIPELINES = [
    "brecq{weights=4 iterations=1}",
    "qdrop{weights=4 activations=4 iterations=1}",
    "ptq4vm{weights=4 iterations=1 epochs=1}",
]
BACKENDS = [
    ("onnx", "host"),
    ("tvm", "host"),
    pytest.param("aarch64", "cortex-a76", marks=pytest.mark.needs("qemu-aarch64")),
]
MIB_4, MIB_8 = 2.2, 4.0


def random_alphas(clips: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(len(clip), 1, *clip.shape[2:], generator=generator) for clip in clips]


def artifact_of(program: Program, backend: str, target: str, folder: Path) -> Artifact:
    if backend != "aarch64":
        return compile_program(program, backend)
    from mattecompress.backends.tvm.backend import Freestanding

    return Freestanding.of(program, target).link(folder)


def assert_same_bits(program: Program, artifact: Artifact, clip: Tensor) -> None:
    """Every output, each side with its own states."""
    for expected, found in zip(
        Stream(program).over(clip), Stream(program, artifact.run).over(clip), strict=True
    ):
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@pytest.fixture(scope="module", params=PIPELINES)
def lowered(request: pytest.FixtureRequest) -> Program:
    clips = clips_for(FedBack)
    context = Context(clips=clips, alphas=random_alphas(clips))
    program = parse_pipeline(f"{request.param},lower{{strict=true}}").run(captured(FedBack), context)
    assert program.level is Level.LOWERED
    return program


@pytest.mark.parametrize(("backend", "target"), BACKENDS)
def test_gives_the_references_bits(lowered: Program, backend: str, target: str, tmp_path: Path) -> None:
    assert_same_bits(lowered, artifact_of(lowered, backend, target, tmp_path), clips_for(FedBack)[1])


@pytest.fixture(scope="module")
def rvm() -> Program:
    """With the shipped weights at 64x96."""
    return capture(
        build_model("rvm-mobilenetv3"), rvm_signature("rvm-mobilenetv3", (64, 96)), "rvm-mobilenetv3"
    )


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", RVM_PIPELINES)
def test_rvm_gives_the_references_bits(rvm: Program, pipeline: str, tmp_path: Path) -> None:
    clip = procedural_clip(0, 0, 3, 64, 96)
    context = Context(clips=[clip.frames], alphas=[clip.alpha])
    program = lower(parse_pipeline(pipeline).run(rvm, context), strict=True)
    for backend, target in (("onnx", "host"), ("tvm", "host"), ("aarch64", "cortex-a76")):
        assert_same_bits(program, artifact_of(program, backend, target, tmp_path), clip.frames)


@pytest.mark.parametrize(("bits", "limit"), [(4, MIB_4), pytest.param(8, MIB_8, marks=pytest.mark.slow)])
def test_onnx_files_take_few_bytes(rvm: Program, bits: int, limit: float, tmp_path: Path) -> None:
    """Weights of 4 bits are stored two in a byte, and whatever else there is stays small."""
    clips = [procedural_clip(0, 0, 2, 64, 96).frames]
    text = f"canonicalize,fold-batch-norm,quantize{{weights={bits} range=min-max}}"
    program = parse_pipeline(text).run(rvm, Context(clips=clips))
    for form in ("onnx", "qdq"):
        ((path, _),) = emit_files(program, "host", form, tmp_path / form)
        assert path.stat().st_size <= limit * 2**20, (form, path.stat().st_size / 2**20)
