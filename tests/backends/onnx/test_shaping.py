import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.onnx.translate import refusal
from tests.backends.onnx.nets import assert_same, both, image, program_of

MOVES = {
    "cat": lambda x: torch.cat([x, x * 2, x], 1),
    "cat-negative-axis": lambda x: torch.cat([x, x], -1),
    "stack": lambda x: torch.stack([x, x * 2], 2),
    "split": lambda x: x.split([1, 2, 1], 1)[1],
    "select": lambda x: x[:, 2],
    "select-negative": lambda x: x.select(-1, -1),
    "view": lambda x: x.view(2, -1),
    "reshape": lambda x: x.reshape(2, 4, 35),
    "flatten": lambda x: x.flatten(2),
    "flatten-middle": lambda x: x.flatten(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze-nothing": lambda x: x.squeeze(1) + 1,
    "expand": lambda x: x[:, :1].expand(-1, 6, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat-more-axes": lambda x: x.repeat(2, 1, 1, 1, 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad-value": lambda x: F.pad(x, (1, 0), value=-7.0),
    "pad-crop": lambda x: F.pad(x, (-1, 2)),
    "pad-reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "pad-replicate": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "index": lambda x: x[:, :, torch.tensor([3, 1, 1])],
    "index-select": lambda x: torch.index_select(x, 1, torch.tensor([2, 0])),
    "gather": lambda x: torch.gather(x, 1, torch.zeros(2, 1, 5, 7, dtype=torch.int64)),
    "pixel-shuffle": lambda x: F.pixel_shuffle(x, 2),
    "zeros-like": lambda x: x + torch.zeros_like(x),
    "full": lambda x: x * torch.full((7,), 0.25),
    "arange": lambda x: x + torch.arange(7, dtype=torch.float32),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES)
def test_moves_are_exact(function):
    assert_same(function, image(2, 4, 5, 7), atol=0)


ends = st.integers(-9, 9) | st.none()


@given(ends, ends, st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_slices(start, end, step, axis):
    """Also empty, clipped and negative ones."""
    program = program_of(lambda x: torch.ops.aten.slice.Tensor(x, axis, start, end, step), (2, 4, 5, 7))
    expected, given_value = both(program, image(2, 4, 5, 7))
    assert torch.equal(expected, given_value)


def test_sizes_stay_open():
    """A shape computed from the input's, with Python's rounding down."""

    def halve(x):
        n, c, h, w = x.shape
        return x[:, :, : -(-h // 2), : w // 2].reshape(n, c, -1, w // 2)

    program = program_of(halve, (1, 2, "3*h", "2*w"))
    for height, width in ((3, 4), (9, 8)):
        expected, given_value = both(program, image(1, 2, height, width))
        assert torch.equal(expected, given_value)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x[torch.tensor([0, 1]), torch.tensor([1, 0])], "several tensors"),
        (lambda x: torch.cumsum(x, 1), "operator aten.cumsum.default has no ONNX form"),
    ],
)
def test_refusals_name_a_reason(function, reason):
    program = program_of(function, (2, 4, 5, 7))
    (found,) = [text for node in program.operations() if (text := refusal(program, node))]
    assert reason in found
