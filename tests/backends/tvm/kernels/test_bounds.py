from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from mattecompress.backends.tvm.kernels.bounds import find_bounds
from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import ENCODINGS, WORDS
from tests.backends.tvm import calls
from tests.backends.tvm.arm import check_emulated
from tests.backends.tvm.harness import make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

HOST = find_target("host").tvm()
NARROW = Convolution(1, 6, 8, 16, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1)
RAGGED = Convolution(1, 7, 5, 40, 24, 1, (3, 3), (2, 1), (1, 1), (1, 1), 2)
GROUPED = Convolution(2, 5, 6, 20, 8, 3, (3, 2), (1, 1), (2, 1), (1, 2), 3)
POINTWISE = Convolution(1, 4, 16, 72, 40, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4)
DEEP = Convolution(1, 2, 3, 1030, 8, 1, (3, 3), (1, 1), (1, 1), (1, 1), 5)
CALLS = [
    calls.binary_conv2d_bits(NARROW, 16, "signs", 0),
    calls.binary_conv2d_bits(RAGGED, 8, "signs", 1),
    calls.binary_conv2d_bits(GROUPED, 32, "units", 0),
    calls.binary_conv2d_bits(POINTWISE, 64, "units", 1),
    calls.binary_conv2d_bits(DEEP, 32, "signs", 0),
    calls.binary_depthwise_conv2d_bits(NARROW, 16, "units", 0),
    calls.binary_depthwise_conv2d_bits(RAGGED, 8, "signs", 1),
    calls.binary_depthwise_conv2d_bits(POINTWISE, 64, "signs", 0),
]


@given(
    st.lists(st.tuples(*[st.integers(-300, 300)] * 3), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
    st.sampled_from([8, 16, 32]),
    st.integers(0, 200),
)
def test_bounds_mean_the_same(rows: list[tuple[int, int, int]], factor: int, bits: int, most: int) -> None:
    table, low, high = np.array(rows).T
    bounds = find_bounds(table, factor, low, high, most, bits)
    totals = np.arange(most + 1)[:, None]
    result = table - factor * totals
    above, below = result >= low, result <= high
    expected = np.where(low <= high, above & below, above | below)
    assert np.array_equal(totals.astype(bounds.start.dtype) - bounds.start <= bounds.span, expected)


@settings(max_examples=10, deadline=None)
@example(DEEP, 32, "signs", 1)
@given(convolutions(outputs=4), st.sampled_from(WORDS), st.sampled_from(ENCODINGS), st.sampled_from([0, 1]))
def test_convolution_equals_reference(case: Convolution, word: int, encoding: str, border: int) -> None:
    whole = replace(case, outputs=8 * case.outputs)
    kernel = make_kernel(*calls.binary_conv2d_bits(whole, word, encoding, border), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=10, deadline=None)
@given(convolutions(channels=20), st.sampled_from(WORDS), st.sampled_from(ENCODINGS), st.sampled_from([0, 1]))
def test_depthwise_equals_reference(case: Convolution, word: int, encoding: str, border: int) -> None:
    whole = replace(case, channels=8 * case.channels)
    kernel = make_kernel(*calls.binary_depthwise_conv2d_bits(whole, word, encoding, border), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@pytest.mark.parametrize("call", [CALLS[1], CALLS[6]], ids=["convolution", "depthwise"])
def test_meaning_does_not_depend_on_the_schedule(call: calls.Call) -> None:
    kernel = make_kernel(*call, HOST, scheduled=False)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@pytest.mark.parametrize(
    ("name", "emulator"),
    [
        pytest.param(name, emulator, marks=pytest.mark.needs(emulator))
        for name, emulator in (("cortex-a76", "qemu-aarch64"), ("armv7-a", "qemu-arm"))
    ],
)
def test_equals_reference_on_arm(name: str, emulator: str, tmp_path: Path) -> None:
    target = find_target(name)
    kernels = [make_kernel(*call, target.tvm()) for call in CALLS]
    assert check_emulated(kernels, target, tmp_path).count("right") == len(CALLS)
