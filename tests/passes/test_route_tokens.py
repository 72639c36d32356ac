import pytest
import torch

from mattecompress.capturing.tracing import capture
from mattecompress.models.signatures import trimap_signature
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.modules.token_router import TokenRouter
from mattecompress.passes.route_tokens import RouteTokens
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.models.vit import random_inputs, tiny_mematte, tiny_program
from tests.passes.attention_nets import mixer


@torch.no_grad()
def test_makes_a_mematte_of_a_vitmatte() -> None:
    """With its weights, what the model of that name computes, and their names are the same."""
    model = tiny_mematte(keep_known=False)
    program = parse_pipeline("mematte{limit=30}").run(tiny_program())
    assert program.level is Level.TRAINABLE
    own = program.state_dict()
    weights = {name: value for name, value in model.state_dict().items() if name in own}
    assert {name for name in own if ".layer.2." in name} == {name for name in weights if ".layer.2." in name}
    program.graph_module.load_state_dict(weights, strict=False)
    inputs = random_inputs(program)
    for part in model.modules():
        if isinstance(part, RoutedAttention):
            part.config = type(part.config)(part.config.channels, part.config.heads, limit=30)
    torch.testing.assert_close(program.run(**inputs)["alpha"], model(**inputs), rtol=0, atol=1e-6)
    captured = capture(model, trimap_signature((96, 160)), "mematte-tiny")
    torch.testing.assert_close(captured.run(**inputs)["alpha"], model(**inputs), rtol=0, atol=1e-6)
    assert parse_program(print_program(program), program.state_dict()) == program


@torch.no_grad()
def test_everything_routed_is_attention_without_positions() -> None:
    program = mixer()
    result = RouteTokens()(program)
    (call,) = result.program.called_modules(TokenRouter)
    last = result.program.module(call).out_conv[4]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)
    assert not RouteTokens()(result.program).modified


def test_new_weights_come_from_the_seed() -> None:
    texts = [print_program(RouteTokens()(mixer(), Context(seed=seed)).program) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_golden(golden) -> None:
    golden(print_program(RouteTokens(limit=5, form="static", variant="paper")(mixer(batch="n")).program))


def test_leaves_other_attention_alone() -> None:
    assert not RouteTokens()(mixer(masked=True)).modified


@pytest.mark.parametrize("limit", [3, 100])
@torch.no_grad()
def test_static_form_exports_and_compiles(limit: int) -> None:
    program = RouteTokens(limit, form="static")(mixer(positioned=True)).program
    x = torch.randn(2, 3, 4, 8)
    (expected,) = program.run(x=x).values()
    exported = torch.export.export(program.graph_module, (x,)).module()
    compiled = torch.compile(program.graph_module, backend="aot_eager", fullgraph=True)
    dynamic = RouteTokens(limit)(mixer(positioned=True)).program.run(x=x)["y"]
    for (found,) in (exported(x), compiled(x), (dynamic,)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
