"""Compressed tokens in ONNX Runtime: the program's answer, with as many tokens as the input makes it choose."""

import pytest
import torch

from mattecompress.backends.onnx import Onnx
from mattecompress.pipeline_text import parse_pipeline
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import inclined, mixer

FORMS = (
    "rewrite-attention{queries=8}",
    "route-tokens",
    "route-tokens{limit=3}",
    "route-tokens{limit=5 form=static}",
    "route-tokens{variant=paper}",
    "merge-tokens{share=0.4}",
    "prune-tokens{method=evit}",
    "prune-tokens",
)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_agrees(form: str) -> None:
    program = inclined(parse_pipeline(form).run(mixer(positioned=True, blocks=2, batch="n")), 0.0)
    artifact = Onnx(verify=False).compile(program)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 4, 8)
        torch.testing.assert_close(artifact.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("margin", [-1e3, 1e3])
@torch.no_grad()
def test_none_and_all_are_routed(margin: float) -> None:
    program = inclined(parse_pipeline("route-tokens").run(mixer()), margin)
    artifact, x = Onnx(verify=False).compile(program), torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(artifact.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pipeline", ["sdpa{rows=32}", "mematte"])
@torch.no_grad()
def test_a_transformer_agrees(pipeline: str) -> None:
    program = parse_pipeline(pipeline).run(tiny_program())
    artifact, inputs = Onnx(verify=False, simplify=False).compile(program), random_inputs(program)
    found = artifact.run(**inputs)["alpha"]
    torch.testing.assert_close(found, program.run(**inputs)["alpha"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("margin", [-1e3, 0.0, 1e3])
@torch.no_grad()
def test_lowered_routing_agrees(margin: float, batch: int) -> None:
    form = parse_pipeline("route-tokens{limit=5 form=static}").run(mixer(batch=batch))
    program = parse_pipeline("lower").run(inclined(form, margin))
    x = torch.randn(batch, 3, 4, 8)
    artifact = Onnx(verify=False).compile(program)
    torch.testing.assert_close(artifact.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-4)
