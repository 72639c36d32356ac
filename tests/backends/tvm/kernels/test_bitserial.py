from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from mattecompress.backends.tvm.kernels import bitserial
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import ENCODINGS, WORDS
from tests.backends.tvm import calls
from tests.backends.tvm.emulation import check_emulated
from tests.backends.tvm.harness import build, make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

HOST = find_target("host").tvm()
NARROW = Convolution(1, 6, 8, 16, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1)
RAGGED = Convolution(1, 7, 5, 35, 20, 1, (3, 3), (2, 1), (1, 1), (1, 1), 2)
GROUPED = Convolution(2, 5, 6, 20, 8, 3, (3, 2), (1, 1), (2, 1), (1, 2), 3)
POINTWISE = Convolution(1, 4, 16, 64, 40, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4)
DEEP = Convolution(1, 3, 4, 1030, 4, 1, (3, 3), (1, 1), (1, 1), (1, 1), 5)
WIDE = Convolution(1, 4, 9, 195, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), 6)
CALLS = [
    calls.binary_conv2d(NARROW, 16, "signs", 0),
    calls.binary_conv2d(RAGGED, 8, "signs", 1),
    calls.binary_conv2d(GROUPED, 32, "units", 0),
    calls.binary_conv2d(POINTWISE, 64, "units", 1),
    calls.binary_conv2d(DEEP, 32, "signs", 0),
    calls.binary_conv2d(WIDE, 128, "signs", 0),
    calls.pack_signs(RAGGED, 32, threshold=True),
    calls.pack_units(POINTWISE, 64),
    calls.binary_depthwise_conv2d(POINTWISE, 64, "signs", 0),
    calls.binary_depthwise_conv2d(RAGGED, 8, "units", 1),
]


@settings(max_examples=15, deadline=None)
@example(DEEP, 32, "signs", 1)
@example(WIDE, 8, "units", 0)
@given(convolutions(), st.sampled_from(WORDS), st.sampled_from(ENCODINGS), st.sampled_from([0, 1]))
def test_convolution_equals_reference(case: Convolution, word: int, encoding: str, border: int) -> None:
    kernel = make_kernel(*calls.binary_conv2d(case, word, encoding, border), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=6, deadline=None)
@given(convolutions(channels=40, outputs=8), st.sampled_from(ENCODINGS))
def test_meaning_does_not_depend_on_the_schedule(case: Convolution, encoding: str) -> None:
    kernel = make_kernel(*calls.binary_conv2d(case, 32, encoding, 0), HOST, scheduled=False)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@pytest.mark.parametrize(
    ("name", "emulator"),
    [
        pytest.param(name, emulator, marks=pytest.mark.needs(emulator))
        for name, emulator in (
            ("cortex-a76", "qemu-aarch64"),
            ("cortex-a53", "qemu-aarch64"),
            ("armv7-a", "qemu-arm"),
        )
    ],
)
def test_equals_reference_on_arm(name: str, emulator: str, tmp_path: Path) -> None:
    target = find_target(name)
    kernels = [make_kernel(*call, target.tvm()) for call in CALLS]
    assert check_emulated(kernels, target, tmp_path).count("right") == len(CALLS)


def test_inner_loop_is_three_neon_instructions() -> None:
    """`eor`, `cnt` and `add` for every 128 multiplications; a spilled accumulator would add loads and stores."""
    target = find_target("cortex-a76").tvm()
    case = Convolution(1, 8, 16, 64, 32, 1, (3, 3), (1, 1), (1, 1), (1, 1), 0)
    assembly = build(
        [make_kernel(*calls.binary_conv2d(case, 64, "signs", 0), target)], target
    ).inspect_source("asm")
    blocks = [block.split("\tb.ne\t")[0] for block in assembly.split("\n.LBB")]
    inner = max(blocks, key=lambda block: block.count("\tcnt\t"))
    counts = inner.count("\tcnt\t")
    assert counts >= 16
    assert inner.count("\teor\t") == counts
    assert inner.count("\tld1r\t") + inner.count("\tldp\tq") + inner.count("\tldr\tq") < counts
    assert "\tstr\tq" not in inner
    assert "\tstp\tq" not in inner


@pytest.mark.parametrize(("octets", "outputs", "unit"), [(2, 16, 2), (8, 64, 4), (3, 20, 4), (5, 40, 2)])
def test_unit_wastes_least_on_neon(octets: int, outputs: int, unit: int) -> None:
    assert bitserial.choose_unit(octets, outputs, Registers(16, 32)) == unit


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 99))
def test_no_chunk_overflows_a_byte(rows: int, columns: int, words: int) -> None:
    chunks = bitserial.choose_chunks(rows, columns, words)
    pieces = [-(-extent // count) for extent, count in zip((rows, columns, words), chunks, strict=True)]
    assert np.prod(pieces) * 8 <= 255
