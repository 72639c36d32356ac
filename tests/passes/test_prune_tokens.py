import pytest
import torch
from torch import Tensor

from mattecompress.modules.token_router import TokenRouter
from mattecompress.passes.prune_tokens import (
    KeepError,
    MeanQueryScores,
    PrunedAttention,
    PruneTokens,
    Selection,
)
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level
from mattecompress.text import print_program
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import OPEN, mixer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parts(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of 2 heads over a 3x4 grid."""
    q, k, v = torch.randn(3, 2 * batch, 12, 4)
    return q, k, v


def test_selection_keeps_the_best_of_those_kept() -> None:
    scores = torch.randn(2, 3, 4, 1)
    first = Selection(8)(scores)
    again = Selection(5)(-scores, first)
    assert first.sum((1, 2, 3)).tolist() == [8, 8] and again.sum((1, 2, 3)).tolist() == [5, 5]
    assert (again <= first).all()
    assert scores[first > 0].view(2, 8).amin(1).gt(scores[first == 0].view(2, 4).amax(1)).all()


def test_mean_query_scores_sum_to_one_among_the_kept() -> None:
    q, k, _ = parts()
    score = MeanQueryScores(2, 0.5, (3, 4))
    torch.testing.assert_close(score(q, k).sum((1, 2, 3)), torch.ones(2))
    kept = Selection(5)(torch.randn(2, 3, 4, 1))
    among = score(q, k, kept)
    torch.testing.assert_close(among.sum((1, 2, 3)), torch.ones(2))
    assert (among[kept == 0] == 0).all()
    torch.testing.assert_close(score(q, k, torch.ones(2, 3, 4, 1)), score(q, k))


def test_pruned_attention_is_dense_attention_with_masked_keys() -> None:
    q, k, v = parts()
    kept = Selection(5)(torch.randn(2, 3, 4, 1))
    mask = kept.reshape(2, 1, 12).expand(2, 2, 12).reshape(4, 12)
    logits = (q @ k.transpose(-2, -1) * 0.5).masked_fill(mask[:, None] == 0, float("-inf"))
    expected = (logits.softmax(-1) @ v) * mask[..., None]
    form = PrunedAttention(2, 0.5, 5)
    torch.testing.assert_close(form(q, k, v, kept), expected)
    fused = form(q, k, v, kept, torch.rand(2, 3, 4, 1))
    assert not torch.allclose(fused, expected) and (fused[mask == 0] == 0).all()


@pytest.mark.parametrize(("method", "level"), [("evit", Level.FLOAT), ("dynamicvit", Level.TRAINABLE)])
@torch.no_grad()
def test_each_block_keeps_fewer(method: str, level: Level) -> None:
    program = mixer(blocks=2)
    result = PruneTokens(method, keep=0.5)(program)  # type: ignore[arg-type]
    assert result.notes == "2 attentions of 6, 3 tokens" and result.program.level is level
    assert len(result.program.called_modules(TokenRouter)) == (2 if method == "dynamicvit" else 0)
    x = torch.randn(2, 3, 4, 8)
    found = result.program.run(x=x)["y"]
    untouched = (found == x).all(-1).sum((1, 2))
    assert untouched.tolist() == [6, 6]
    alone = torch.cat([_run_alone(method, x[index : index + 1]) for index in range(2)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    assert not PruneTokens(method)(result.program).modified  # type: ignore[arg-type]


def _run_alone(method: str, x: Tensor) -> Tensor:
    program = PruneTokens(method, keep=0.5)(mixer(batch=1, blocks=2)).program  # type: ignore[arg-type]
    return program.run(x=x)["y"]


@pytest.mark.parametrize("method", ["dynamicvit", "evit"])
def test_golden(method: str, golden) -> None:
    golden(print_program(PruneTokens(method)(mixer(batch=1)).program))  # type: ignore[arg-type]


@pytest.mark.parametrize("pipeline", ["dynamicvit{keep=0.5}", "evit"])
@torch.no_grad()
def test_of_a_transformer(pipeline: str) -> None:
    program = parse_pipeline(pipeline).run(tiny_program())
    inputs = random_inputs(program)
    alpha = program.run(**inputs)["alpha"]
    assert alpha.isfinite().all() and not torch.equal(alpha, tiny_program().run(**inputs)["alpha"])


def test_leaves_other_attention_alone() -> None:
    assert not PruneTokens()(mixer(masked=True)).modified


@pytest.mark.parametrize("keep", [0, 1])
def test_refuses_shares_out_of_range(keep: float) -> None:
    with pytest.raises(KeepError, match=f"keep={keep}"):
        PruneTokens(keep=keep)


@pytest.mark.parametrize("method", ["dynamicvit", "evit"])
def test_refuses_open_sizes(method: str) -> None:
    with pytest.raises(PreconditionError, match="size is open: fix it with -p 'set-resolution"):
        PruneTokens(method)(mixer(grid=OPEN))  # type: ignore[arg-type]
