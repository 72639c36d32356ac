"""Laws of routed tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mattecompress.ops  # noqa: F401  (registers torch.ops.matte)

matte = torch.ops.matte


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
    limit=st.integers(1, 12),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_surest_above_zero_are_chosen(batch, length, limit, levels, seed):
    limit, generator = min(limit, length), torch.Generator().manual_seed(seed)
    margin = torch.randint(-levels, levels + 1, (batch, length), generator=generator).float()
    places = matte.choose_tokens(margin, limit)
    for row, found in zip(margin.tolist(), places.tolist(), strict=True):
        order = sorted((i for i in range(length) if row[i] > 0), key=lambda i: (-row[i], i))[:limit]
        assert found == order + [-1] * (limit - len(order))


def test_rows_come_back_to_where_they_were():
    x, base = torch.randn(2, 5, 3), torch.zeros(2, 5, 3)
    places = torch.tensor([[4, 0, -1], [-1, -1, -1]], dtype=torch.int32)
    rows = matte.gather_tokens(x, places)
    assert torch.equal(rows[0], torch.stack([x[0, 4], x[0, 0], torch.zeros(3)]))
    back = matte.scatter_tokens(rows + 1, places, base)
    assert torch.equal(back[0, [0, 4]], x[0, [0, 4]] + 1)
    assert back[0, 1:4].abs().sum() == back[1].abs().sum() == 0


def test_shapes_depend_on_no_data():
    x = torch.randn(2, 6, 4)
    places = matte.choose_tokens(x[..., 0].contiguous(), 3)
    for operation, arguments in (
        (matte.choose_tokens.default, (x[..., 0].contiguous(), 3)),
        (matte.gather_tokens.default, (x, places)),
        (matte.scatter_tokens.default, (x[:, :3].contiguous(), places, x)),
    ):
        torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="limit is 7, of 6 tokens"):
        matte.choose_tokens(torch.zeros(1, 6, device="meta"), 7)
