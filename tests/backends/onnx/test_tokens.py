"""Compressed tokens in ONNX Runtime: the program's answer, with as many tokens as the input makes it choose."""

import pytest
import torch

from mattecompress.backends.onnx import Onnx
from mattecompress.modules.token_router import TokenRouter
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import mixer

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


def inclined(program: Program, margin: float) -> Program:
    """Routers that say yes to more or fewer tokens."""
    for node in program.called_modules(TokenRouter):
        router = program.module(node)
        with torch.no_grad():
            router.out_conv[-2].weight.mul_(20)
            router.out_conv[-2].bias.copy_(torch.tensor([margin, 0.0]))
    return program


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
