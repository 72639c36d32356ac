import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import WORDS
from tests.backends.tvm import calls
from tests.backends.tvm.harness import make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

matte = torch.ops.matte
HOST = find_target("host").tvm()
BEYOND_A_WORD = Convolution(1, 2, 3, 129, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1)


@settings(max_examples=15, deadline=None)
@example(BEYOND_A_WORD, 128, True)
@given(convolutions(), st.sampled_from(WORDS), st.booleans())
def test_signs_equal_reference(case: Convolution, word: int, threshold: bool) -> None:
    kernel = make_kernel(*calls.pack_signs(case, word, threshold), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=5, deadline=None)
@given(convolutions(), st.sampled_from(WORDS))
def test_units_equal_reference(case: Convolution, word: int) -> None:
    kernel = make_kernel(*calls.pack_units(case, word), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=10, deadline=None)
@example(BEYOND_A_WORD, 128, 0)
@given(convolutions(), st.sampled_from(WORDS), st.sampled_from([0, 1]))
def test_planes_equal_reference(case: Convolution, word: int, plane: int) -> None:
    kernel = make_kernel(*calls.pack_plane(case, word, plane), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@pytest.mark.parametrize("plane", [0, 1])
def test_planes_turn_at_the_reference_s_floats(plane: int) -> None:
    """Around each tie, neighbouring floats: where the product with 3 rounds, and ends of the range."""
    ties = torch.tensor([0.0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1.0]).view(torch.int32)
    near = (ties[:, None] + torch.arange(-8, 9)).int().view(torch.float32)
    ends = torch.tensor([-torch.inf, -3.0, -0.0, 3.0, 3e38, torch.inf])
    x = torch.cat([near[1:].flatten(), ends]).reshape(1, 1, 2, -1).permute(0, 3, 1, 2)
    kernel = make_kernel(matte.pack_plane.default, (x, plane, 1, 8), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


def test_meaning_does_not_depend_on_the_schedule() -> None:
    kernel = make_kernel(*calls.pack_signs(BEYOND_A_WORD, 32, True), HOST, scheduled=False)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)
