import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import ENCODINGS, WORDS
from tests.backends.tvm import calls
from tests.backends.tvm.harness import make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

HOST = find_target("host").tvm()
ODD_BYTES = Convolution(1, 7, 9, 72, 1, 1, (5, 5), (2, 1), (2, 2), (1, 1), 1)
MOST_TAPS = Convolution(1, 4, 4, 8, 1, 1, (15, 17), (1, 1), (7, 8), (1, 1), 2)


@settings(max_examples=15, deadline=None)
@example(ODD_BYTES, 8, "signs", 0)
@example(ODD_BYTES, 128, "units", 1)
@example(MOST_TAPS, 8, "signs", 1)
@given(convolutions(), st.sampled_from(WORDS), st.sampled_from(ENCODINGS), st.sampled_from([0, 1]))
def test_equals_reference(case: Convolution, word: int, encoding: str, border: int) -> None:
    kernel = make_kernel(*calls.binary_depthwise_conv2d(case, word, encoding, border), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


def test_refuses_more_taps_than_a_byte_counts() -> None:
    bits, weight = torch.zeros(1, 16, 16, 1, dtype=torch.uint8), torch.zeros(16, 16, 1, dtype=torch.uint8)
    arguments = (bits, weight, 8, [1, 1], [0, 0], [1, 1], "signs", 0)
    with pytest.raises(ValueError, match="at most 255"):
        make_kernel(torch.ops.matte.binary_depthwise_conv2d.default, arguments, HOST)
