"""Laws of the router, the lightweight branch and routed attention."""

import pytest
import torch
from torch import Tensor

from mattecompress.modules import build_module
from mattecompress.modules.routed_attention import RoutedAttention, RoutedAttentionConfig
from mattecompress.modules.token_refinement import TokenRefinement, TokenRefinementConfig
from mattecompress.modules.token_router import TokenRouter, TokenRouterConfig
from mattecompress.options import format_options

GRID = (3, 5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attention(**options: object) -> RoutedAttention:
    return RoutedAttention(RoutedAttentionConfig(8, 2, **options)).eval()  # type: ignore[arg-type]


def scores_for(chosen: Tensor) -> Tensor:
    """Log-probabilities (N,H,W,2) that choose just these (N,H,W)."""
    margin = torch.where(chosen, 1.0, -1.0) * (0.5 + torch.rand(chosen.shape))
    return torch.stack([margin, torch.zeros_like(margin)], -1).log_softmax(-1)


def by_hand(module: RoutedAttention, x: Tensor, refined: Tensor, chosen: Tensor) -> Tensor:
    """Dense attention with every key masked that is not chosen."""
    q, k, v = module._heads(x.flatten(1, 2))
    logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    logits = logits.masked_fill(~chosen.flatten(1)[:, None, None], float("-inf"))
    dense = module.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).view_as(refined)
    return torch.where(chosen[..., None], dense, refined)


@pytest.mark.parametrize("form", ["dynamic", "static"])
@torch.no_grad()
def test_is_dense_attention_with_masked_keys(form: str) -> None:
    module = attention(form=form)
    x, refined = torch.randn(3, *GRID, 8), torch.randn(3, *GRID, 8)
    chosen = torch.rand(3, *GRID) < torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    found = module(x, refined, scores_for(chosen))
    torch.testing.assert_close(found, by_hand(module, x, refined, chosen), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["dynamic", "static"])
@pytest.mark.parametrize("share", [0.0, 1.0])
@torch.no_grad()
def test_none_and_all(form: str, share: float) -> None:
    module = attention(form=form)
    x, refined = torch.randn(2, *GRID, 8), torch.randn(2, *GRID, 8)
    chosen = torch.rand(2, *GRID) < share
    found = module(x, refined, scores_for(chosen))
    assert torch.equal(found, refined) if share == 0 else not torch.allclose(found, refined)
    mixed = chosen.clone()
    mixed[1] = ~mixed[1]
    found = module(x, refined, scores_for(mixed))
    assert found.isfinite().all() and torch.equal(found[int(share)], refined[int(share)])


@pytest.mark.parametrize("form", ["dynamic", "static"])
@torch.no_grad()
def test_limit_keeps_the_surest(form: str) -> None:
    x, refined = torch.randn(1, *GRID, 8), torch.randn(1, *GRID, 8)
    scores = scores_for(torch.ones(1, *GRID, dtype=torch.bool))
    surest = (scores[..., 0] - scores[..., 1]).flatten().topk(4).indices
    chosen = torch.zeros(15, dtype=torch.bool).index_fill(0, surest, True).view(1, *GRID)
    module = attention(form=form, limit=4)
    expected = by_hand(module, x, refined, chosen)
    torch.testing.assert_close(module(x, refined, scores), expected, rtol=0, atol=1e-6)


def test_ties_do_without() -> None:
    module, x = attention(), torch.randn(1, *GRID, 8)
    assert torch.equal(module(x, 2 * x, torch.zeros(1, *GRID, 2)), 2 * x)


def test_training_goes_both_ways_with_gradients_to_the_router() -> None:
    module, scores = attention().train(), torch.zeros(2, *GRID, 2, requires_grad=True)
    x, refined = torch.randn(2, *GRID, 8), torch.randn(2, *GRID, 8)
    torch.manual_seed(3)
    found = module(x, refined, scores)
    found.square().sum().backward()
    assert scores.grad is not None and scores.grad.abs().sum() > 0
    torch.manual_seed(3)
    chosen = torch.nn.functional.gumbel_softmax(scores.detach(), hard=True)[..., 0] > 0.5
    torch.testing.assert_close(found, by_hand(module, x, refined, chosen), rtol=0, atol=1e-4)


@torch.no_grad()
def test_static_form_exports() -> None:
    module = attention(form="static", limit=6)
    inputs = (torch.randn(2, *GRID, 8), torch.randn(2, *GRID, 8), torch.randn(2, *GRID, 2).log_softmax(-1))
    exported = torch.export.export(module, inputs).module()
    assert torch.equal(exported(*inputs), module(*inputs))


@pytest.mark.parametrize("variant", ["code", "paper"])
@torch.no_grad()
def test_router_sees_itself_and_the_mean(variant: str) -> None:
    router, x = TokenRouter(TokenRouterConfig(8, variant)).eval(), torch.randn(2, *GRID, 8)  # type: ignore[arg-type]
    scores = router(x)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, *GRID))
    torch.testing.assert_close(router(x.flip(1, 2)).flip(1, 2), scores)
    torch.testing.assert_close(router(x, torch.ones(2, *GRID, 1)), scores)
    half = torch.zeros(2, *GRID, 1)
    half[:, 0] = 1
    torch.testing.assert_close(router(x, half)[:, :1], router(x[:, :1]))


@pytest.mark.parametrize("variant", ["code", "paper"])
@torch.no_grad()
def test_refinement_is_local_but_for_its_gate(variant: str) -> None:
    branch = TokenRefinement(TokenRefinementConfig(8, variant)).eval()  # type: ignore[arg-type]
    x = torch.randn(1, 9, 9, 8)
    other = x.clone()
    other[0, 0, 0] += 1
    branch.eca.conv.weight.zero_()
    difference = (branch(x) - branch(other)).abs().sum(-1)[0]
    assert difference[:3, :3].min() > 0 and difference[3:].max() == 0 == difference[:, 3:].max()
    linear = branch(2 * x) - 2 * branch(x) + branch(0 * x)
    assert torch.allclose(linear, torch.zeros(()), atol=1e-5) == (variant == "paper")


def test_gate_is_as_long_as_published() -> None:
    for channels in (384, 768):
        with torch.device("meta"):
            assert TokenRefinement(TokenRefinementConfig(channels)).eca.conv.weight.shape == (1, 1, 5)


def test_text_forms() -> None:
    for module in (attention(limit=9, form="static"), TokenRouter(TokenRouterConfig(8, "paper"))):
        text = format_options(type(module).__name__, module.config)
        assert build_module(text).config == module.config
