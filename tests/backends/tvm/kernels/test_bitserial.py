import re
from collections import Counter
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
from tests.backends.tvm.arm import check_emulated, count_instructions
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
    *(
        calls.pack_signs(case, word, threshold=True)
        for case, word in ((RAGGED, 32), (RAGGED, 8), (NARROW, 16), (DEEP, 8))
    ),
    calls.pack_units(POINTWISE, 64),
    *(
        calls.pack_plane(case, word, plane)
        for case, word in ((POINTWISE, 64), (GROUPED, 32))
        for plane in (0, 1)
    ),
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


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_inner_loop_is_three_neon_instructions(channels: int) -> None:
    """`eor`, `cnt` and `uadalp` for every 128 products, and at most a tenth more to spread words over lanes.

    A spilled accumulator would add loads and stores.
    """
    target = find_target("cortex-a76").tvm()
    case = Convolution(1, 28, 28, channels, channels, 1, (3, 3), (1, 1), (1, 1), (1, 1), 0)
    call = calls.binary_conv2d(case, 64, "signs", 0)
    assembly = build([make_kernel(*call, target)], target).inspect_source("asm")
    blocks = [block.split("\tb.ne\t")[0] for block in assembly.split("\n.LBB")]
    inner = max(blocks, key=lambda block: block.count("\tcnt\t"))
    counted = Counter(re.findall(r"^\t([a-z]\w*)\t", inner, re.MULTILINE))
    steps = counted["cnt"]
    assert steps >= 16
    assert counted["eor"] == counted["uadalp"] == steps
    loads = counted["ldp"] + counted["ldr"] + counted["ld1r"]
    of_the_loop = counted["add"] + counted["subs"]
    assert sum(counted.values()) - loads - of_the_loop <= 3.3 * steps
    assert loads < steps / 4
    assert not counted.keys() & {"str", "stp", "stur"}


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.parametrize(("channels", "most"), [(64, 5.70), (128, 3.98), (256, 3.99)])
def test_executes_less_than_hand_written_assembly(channels: int, most: float, tmp_path: Path) -> None:
    """Instructions for 128 products of a whole 3x3 layer of 28x28 outputs; `most` is daBNN's for the same."""
    target = find_target("cortex-a76")
    case = Convolution(1, 28, 28, channels, channels, 1, (3, 3), (1, 1), (1, 1), (1, 1), 0)
    kernel = make_kernel(*calls.binary_conv2d(case, 64, "signs", 0), target.tvm())
    executed = count_instructions(kernel, target, tmp_path)
    per_128 = executed / (28 * 28 * 9 * channels * channels / 128)
    assert per_128 < most


@pytest.mark.parametrize(("octets", "outputs", "unit"), [(2, 16, 2), (8, 64, 4), (3, 20, 4), (5, 40, 2)])
def test_unit_wastes_least_on_neon(octets: int, outputs: int, unit: int) -> None:
    assert bitserial.choose_unit(octets, outputs, Registers(16, 32)) == unit


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 99))
def test_no_chunk_overflows_a_byte(rows: int, columns: int, words: int) -> None:
    chunks = bitserial.choose_chunks(rows, columns, words)
    pieces = [-(-extent // count) for extent, count in zip((rows, columns, words), chunks, strict=True)]
    assert np.prod(pieces) * 8 <= 255
