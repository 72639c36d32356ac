import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import WORDS
from tests.backends.tvm import calls
from tests.backends.tvm.harness import make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

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


def test_meaning_does_not_depend_on_the_schedule() -> None:
    kernel = make_kernel(*calls.pack_signs(BEYOND_A_WORD, 32, True), HOST, scheduled=False)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)
