"""RVM with its real weights through the whole path."""

import pytest
import torch

from mattecompress.backends.tvm.backend import Freestanding
from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.capturing.tracing import capture
from mattecompress.models import build_model
from mattecompress.models.signatures import rvm_signature
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from tests.backends.tvm.nets import HOST

SIZE = (96, 160)


def program(shared_data, pipeline: str):
    model = build_model("rvm-mobilenetv3", shared_data / "rvm_mobilenetv3.safetensors")
    captured = capture(model, rvm_signature("rvm-mobilenetv3", SIZE), "rvm")
    clip = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return parse_pipeline(pipeline).run(captured, Context(clips=[clip]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "largest", "mean"),
    [("fold-batch-norm", 5e-5, 5e-6), ("mse,lower", 0, 0), ("rvm-react,lower", 5e-5, 5e-6)],
)
def test_frames_equal_the_reference(shared_data, pipeline, largest, mean):
    """An 8-bit program to the last bit; float convolutions add up in another order than torch."""
    rvm = program(shared_data, pipeline)
    module = lower(rvm, HOST)
    assert "serial" not in rules_used(module).values()
    library = compile_host(module, HOST)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.rand(rvm.facts(node).sizes, generator=generator)
        for name, node in zip(rvm.input_names, rvm.inputs, strict=True)
    }
    with torch.no_grad():
        expected = rvm.run(**inputs)
    results = library.run(**inputs)
    for name, value in expected.items():
        difference = (results[name] - value).abs()
        assert difference.max() <= largest, name
        assert difference.mean() <= mean, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "megabytes"), [("fold-batch-norm", 40), ("fold-batch-norm,cast-half", 20)]
)
def test_a_build_has_the_same_bytes_again_and_little_memory(tmp_path, pipeline, megabytes):
    model = build_model("rvm-mobilenetv3", untrained=True)
    captured = capture(model, rvm_signature("rvm-mobilenetv3", (288, 512)), "rvm")
    rvm = parse_pipeline(pipeline).run(captured)
    (tmp_path / "again").mkdir()
    made = [Freestanding.of(rvm, "cortex-a76").link(folder) for folder in (tmp_path, tmp_path / "again")]
    first, again = (artifact.path.read_bytes() for artifact in made)
    assert first == again
    assert made[0].plan.arena_megabytes <= megabytes
