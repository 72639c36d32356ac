"""Attention on a grid against the map of all pairs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mattecompress import ops

assert ops
attend_on_grid = torch.ops.matte.attend_on_grid


def drawn(
    images: int, height: int, width: int, channels: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    rows = [torch.randn(images, height * width, channels, dtype=dtype) for _ in range(3)]
    return *rows, *(torch.randn(images, height, width, keys, dtype=dtype) for keys in (height, width))


def whole(query, key, value, vertical, horizontal, scale):
    bias = (vertical[..., None] + horizontal[..., None, :]).flatten(3).flatten(1, 2)
    return (scale * query @ key.transpose(1, 2) + bias).softmax(-1) @ value


@given(
    images=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    channels=st.integers(1, 9),
    queries=st.integers(1, 40),
    seed=st.integers(0, 1 << 30),
)
def test_is_the_whole_attention(images, height, width, channels, queries, seed):
    torch.manual_seed(seed)
    tensors = drawn(images, height, width, channels, torch.float64)
    found = attend_on_grid(*tensors, 0.3, queries)
    torch.testing.assert_close(found, whole(*tensors, 0.3), rtol=1e-12, atol=1e-12)


def test_half_precision():
    tensors = drawn(2, 4, 5, 8, torch.float16)
    expected = whole(*(tensor.float() for tensor in tensors), 0.3)
    found = attend_on_grid(*tensors, 0.3, 10)
    assert found.dtype is torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_has_the_gradient_of_the_whole():
    tensors = [tensor.requires_grad_() for tensor in drawn(2, 5, 3, 4, torch.float64)]
    weight = torch.randn(2, 15, 4, dtype=torch.float64)
    found = torch.autograd.grad((attend_on_grid(*tensors, 0.3, 6) * weight).sum(), tensors)
    expected = torch.autograd.grad((whole(*tensors, 0.3) * weight).sum(), tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_keeps_to_its_schema():
    inputs = (*drawn(2, 3, 4, 5, torch.float32), 0.5, 4)
    torch.library.opcheck(attend_on_grid.default, inputs, test_utils=("test_schema", "test_faketensor"))
