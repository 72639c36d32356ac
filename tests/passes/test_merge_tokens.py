import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.passes.merge_tokens import Matching, MergeTokens, ShareError
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level
from mattecompress.text import print_program
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import OPEN, mixer

sizes = st.integers(2, 13).flatmap(
    lambda length: st.tuples(st.just(length), st.integers(0, (length + 1) // 2))
)


@given(sizes)
@settings(max_examples=40, deadline=None)
def test_merging_undoes_unmerging(size: tuple[int, int]) -> None:
    length, merged = size
    matching = Matching(torch.randn(2, length, 3), merged)
    y = torch.randn(2, 4, length - merged, 5)
    whole = matching.unmerged(y)
    assert whole.shape == (2, 4, length, 5)
    counts = matching.merged_sums(torch.ones(2, 1, length, 1))
    assert counts.sum(2).eq(length).all()
    torch.testing.assert_close(matching.merged_sums(whole) / counts, y)


def test_the_most_alike_are_merged() -> None:
    metric = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0.1], [-1, 0.5]])[None]
    matching = Matching(metric, 2)
    assert matching.gone.tolist() == [[1, 0]] and matching.into.tolist() == [[0, 1]]
    x = torch.arange(5.0).reshape(1, 1, 5, 1)
    assert matching.merged_sums(x).flatten().tolist() == [4, 3, 3]
    assert matching.unmerged(matching.merged_sums(x)).flatten().tolist() == [3, 3, 3, 3, 4]


def test_rows_at_a_time_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = torch.randn(2, 21, 4)
    whole = Matching(metric, 6)
    monkeypatch.setattr(Matching, "rows", 4)
    parts = Matching(metric, 6)
    assert torch.equal(whole.gone, parts.gone) and torch.equal(whole.into, parts.into)


@torch.no_grad()
def test_equal_tokens_lose_nothing() -> None:
    """Where pairs of tokens are the same, attention among merged tokens of their size is attention among all."""
    program = mixer()
    result = MergeTokens(share=0.5)(program)
    x = torch.randn(2, 3, 2, 1, 8).expand(2, 3, 2, 2, 8).reshape(2, 3, 4, 8)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)
    unfair = MergeTokens(share=0.3, proportional=False)(program).program
    assert not torch.allclose(unfair.run(x=x)["y"], program.run(x=x)["y"], atol=1e-4)
    assert result.notes == "1 attentions, 6 tokens merged in the last"
    assert not MergeTokens()(result.program).modified
    assert not MergeTokens()(mixer(masked=True)).modified


def test_golden(golden) -> None:
    golden(print_program(MergeTokens(share=0.25)(mixer(batch=1)).program))


@torch.no_grad()
def test_of_a_transformer() -> None:
    program = parse_pipeline("tome").run(tiny_program())
    assert program.level is Level.FLOAT
    inputs = random_inputs(program)
    alpha = program.run(**inputs)["alpha"]
    assert alpha.isfinite().all() and not torch.equal(alpha, tiny_program().run(**inputs)["alpha"])


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    program = MergeTokens()(mixer(batch="n")).program
    x = torch.randn(2, 3, 4, 8)
    alone = torch.cat([program.run(x=x[index : index + 1])["y"] for index in range(2)])
    torch.testing.assert_close(program.run(x=x)["y"], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0, 0.6])
def test_refuses_shares_out_of_range(share: float) -> None:
    with pytest.raises(ShareError, match=f"share={share}"):
        MergeTokens(share=share)


def test_refuses_open_sizes() -> None:
    with pytest.raises(PreconditionError, match="size is open: fix it with -p 'set-resolution"):
        MergeTokens()(mixer(grid=OPEN))
