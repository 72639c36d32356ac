import pytest
import torch

from mattecompress.analysis.attention import find_attention
from mattecompress.passes.rewrite_attention import RewriteAttention, TileError
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import OPEN, mixer

attend = torch.ops.aten.scaled_dot_product_attention.default
attend_on_grid = torch.ops.matte.attend_on_grid.default


@pytest.mark.parametrize("positioned", [False, True])
@pytest.mark.parametrize("queries", [1, 8, 100])
@torch.no_grad()
def test_computes_the_same(positioned: bool, queries: int) -> None:
    program, x = mixer(positioned), torch.randn(2, 3, 4, 8)
    result = RewriteAttention(queries)(program)
    assert result.notes == "1 attentions"
    assert len(result.program.find(attend_on_grid if positioned else attend)) == 1
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)
    assert not RewriteAttention()(result.program).modified


def test_leaves_other_sums_alone() -> None:
    program = mixer(positioned=False, masked=True)
    assert not RewriteAttention()(program).modified and not find_attention(program)


def test_golden(golden) -> None:
    golden(print_program(RewriteAttention(queries=8)(mixer(positioned=True, batch=1)).program))


@torch.no_grad()
def test_of_a_transformer_only_global_attention_changes() -> None:
    program = tiny_program()
    result = parse_pipeline("sdpa{queries=24}").run(program)
    assert result.level is Level.FLOAT
    assert len(result.find(attend_on_grid)) == 1
    windows = len(program.find(torch.ops.aten.softmax.int)) - 1
    assert len(result.find(torch.ops.aten.softmax.int)) == windows == 2
    inputs = random_inputs(program)
    torch.testing.assert_close(
        result.run(**inputs)["alpha"], program.run(**inputs)["alpha"], rtol=0, atol=1e-5
    )
    assert not torch.allclose(
        _without_positions(result).run(**inputs)["alpha"], program.run(**inputs)["alpha"], rtol=0, atol=1e-3
    )
    assert parse_program(print_program(result), result.state_dict()) == result


def _without_positions(program: Program) -> Program:
    other = program.clone()
    for name, value in other.state_dict().items():
        if "layer.2.attention.rel_pos" in name:
            value.zero_()
    return other


def test_refuses_empty_tiles() -> None:
    with pytest.raises(TileError, match="queries=0"):
        RewriteAttention(queries=0)


@torch.no_grad()
def test_sizes_may_be_open_where_there_are_no_positions() -> None:
    program = mixer(batch="n", grid=OPEN)
    result = RewriteAttention()(program).program
    assert len(result.find(attend)) == 1
    for size in ((2, 3, 4, 8), (1, 5, 2, 8)):
        x = torch.randn(size)
        torch.testing.assert_close(result.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)
    with pytest.raises(PreconditionError, match="size is open: fix it with -p 'set-resolution"):
        RewriteAttention()(mixer(positioned=True, grid=OPEN))
