import pytest
import torch

from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.passes.lower_tokens import LowerTokens
from mattecompress.passes.prune_tokens import PruneTokens
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.passes.attention_nets import inclined, mixer


def routed(options: str = "limit=5 form=static", margin: float = 0.0, blocks: int = 1) -> Program:
    program = mixer(positioned=True, batch=2, blocks=blocks)
    return inclined(parse_pipeline(f"route-tokens{{{options}}}").run(program), margin)


def test_golden(golden) -> None:
    golden(print_program(LowerTokens()(routed()).program))


@pytest.mark.parametrize("margin", [-1e3, -0.2, 0.0, 0.2, 1e3])
@pytest.mark.parametrize("options", ["limit=5 form=static", "limit=99 form=static variant=paper"])
@torch.no_grad()
def test_computes_the_same(options: str, margin: float) -> None:
    program = routed(options, margin, blocks=2)
    result = LowerTokens()(program)
    assert result.notes == "6 modules" and result.program.level is Level.LOWERED
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program


@torch.no_grad()
def test_routers_that_look_at_kept_tokens_only() -> None:
    program = PruneTokens(keep=0.5)(mixer(blocks=2)).program
    result = LowerTokens()(program)
    assert result.notes == "2 modules"
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)


def test_leaves_attention_whose_shapes_depend_on_data() -> None:
    result = LowerTokens()(routed("limit=5"))
    assert result.notes == "2 modules"
    assert len(result.program.called_modules(RoutedAttention)) == 1


def test_leaves_other_programs_alone() -> None:
    assert not LowerTokens()(mixer()).modified
