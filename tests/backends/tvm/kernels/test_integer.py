from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm

from mattecompress.backends.tvm.targets import cpu_flags, find_target
from tests.backends.tvm import calls
from tests.backends.tvm.arm import check_emulated
from tests.backends.tvm.harness import build, make_kernel, run_here
from tests.ops.cases import Convolution, convolutions

HOST = find_target("host").tvm()
PLAIN_X86 = tvm.target.Target({"kind": "llvm"})
DENSE = Convolution(1, 5, 8, 16, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1)
RAGGED = Convolution(1, 7, 5, 35, 20, 1, (3, 3), (2, 1), (1, 1), (1, 1), 2)
GROUPED = Convolution(2, 5, 6, 5, 4, 3, (3, 2), (1, 1), (2, 1), (1, 2), 3)
ODD = Convolution(1, 4, 4, 6, 3, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4)
WIDE = Convolution(1, 6, 8, 24, 1, 1, (5, 5), (1, 2), (2, 2), (1, 1), 5)
CALLS = [
    calls.quantized_conv2d(DENSE, 8, 117),
    calls.quantized_conv2d(RAGGED, 4, 3),
    calls.quantized_conv2d(GROUPED, 8, 0),
    calls.quantized_conv2d(ODD, 3, 255),
    calls.quantized_conv2d(WIDE, 8, 60, depthwise=True),
    calls.quantized_conv2d(RAGGED, 4, 60, depthwise=True),
    calls.quantize(RAGGED, 0.3, 7, 8),
    calls.dequantize(RAGGED, 0.3, 7),
]
AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})


def extreme(weight: int, outputs: int) -> calls.Call:
    """A call in which every code is 255 and every weight the same."""
    codes = torch.full((1, 64, 4, 4), 255, dtype=torch.uint8)
    weights = torch.full((outputs, 64, 1, 1), weight, dtype=torch.int8)
    geometry = [1, 1], [1, 1], [0, 0], [1, 1]
    return torch.ops.matte.quantized_conv2d.default, (codes, weights, 255, 8, *geometry, 1)


@settings(max_examples=15, deadline=None)
@example(Convolution(1, 1, 2, 2, 1, 1, (1, 2), (1, 1), (0, 0), (1, 1), 0), 2, 0)
@given(convolutions(), st.sampled_from([2, 4, 8]), st.integers(0, 255))
def test_convolution_equals_reference(case: Convolution, weight_bits: int, zero_point: int) -> None:
    kernel = make_kernel(*calls.quantized_conv2d(case, weight_bits, zero_point), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=10, deadline=None)
@example(WIDE, 8, 200)
@given(convolutions(), st.sampled_from([4, 8]), st.integers(0, 255))
def test_depthwise_equals_reference(case: Convolution, weight_bits: int, zero_point: int) -> None:
    kernel = make_kernel(*calls.quantized_conv2d(case, weight_bits, zero_point, depthwise=True), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@pytest.mark.parametrize("zero_point", [-40, 300])
@pytest.mark.parametrize("depthwise", [False, True])
def test_zero_point_that_is_no_code(zero_point: int, depthwise: bool) -> None:
    kernel = make_kernel(*calls.quantized_conv2d(RAGGED, 8, zero_point, depthwise), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


@settings(max_examples=6, deadline=None)
@given(convolutions(), st.integers(0, 255))
def test_equals_reference_without_vector_extensions(case: Convolution, zero_point: int) -> None:
    kernel = make_kernel(*calls.quantized_conv2d(case, 8, zero_point), PLAIN_X86)
    assert np.array_equal(run_here(kernel, PLAIN_X86), kernel.expected)


@settings(max_examples=10, deadline=None)
@given(convolutions(), st.floats(0.0625, 3.0, width=32), st.integers(0, 255), st.integers(2, 8))
def test_quantize_and_dequantize_equal_reference(
    case: Convolution, scale: float, zero_point: int, bits: int
) -> None:
    for call in (calls.quantize(case, scale, zero_point, bits), calls.dequantize(case, scale, zero_point)):
        kernel = make_kernel(*call, HOST)
        assert np.array_equal(run_here(kernel, HOST), kernel.expected)


def halfway(scale: float) -> calls.Call:
    """A call that quantizes what lies within three float32 of the middle between two codes, and what has no code."""
    middles = (np.float32(scale) * (np.arange(-40, 300) + 0.5)).astype(np.float32)
    near = middles.view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)
    far = np.float32([np.inf, -np.inf, 3e38, -3e38, 1e-40, -0.0, 0.0])
    x = torch.from_numpy(np.stack([*near.view(np.float32), far]))[None, None]
    return torch.ops.matte.quantize.default, (x, scale, 30, 8)


@settings(max_examples=10, deadline=None)
@example(1 - 2**-24)
@example(2.0**-130)
@given(st.floats(2**-14, 2**10, width=32))
def test_quantizes_by_a_true_division(scale: float) -> None:
    kernel = make_kernel(*halfway(scale), HOST)
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
    """With the largest products too, which overflow int16 when two are added, and with ties."""
    target = find_target(name)
    every = [*CALLS, extreme(-128, outputs=4), *(halfway(scale) for scale in (0.007, 1 - 2**-24, 3.0))]
    kernels = [make_kernel(*call, target.tvm()) for call in every]
    assert check_emulated(kernels, target, tmp_path).count("right") == len(every)


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="this processor has no AVX2")
@pytest.mark.parametrize(("weight", "narrow"), [(64, True), (-64, True), (65, False), (-128, False)])
def test_multiplies_bytes_where_no_pair_of_products_saturates(weight: int, narrow: bool) -> None:
    kernel = make_kernel(*extreme(weight, outputs=8), AVX2)
    assert ("vpmaddubsw" in build([kernel], AVX2).inspect_source("asm")) == narrow
    assert np.array_equal(run_here(kernel, AVX2), kernel.expected)


@pytest.mark.parametrize(
    ("name", "instruction"), [("cortex-a76", "sdot"), ("cortex-a53", "smull"), ("apple-m1", "sdot")]
)
def test_uses_the_instruction_of_the_target(name: str, instruction: str) -> None:
    target = find_target(name).tvm()
    assembly = build([make_kernel(*calls.quantized_conv2d(DENSE, 8, 3), target)], target).inspect_source(
        "asm"
    )
    assert assembly.count(f"\t{instruction}") >= 16
    assert assembly.count("\tsdot") == 0 or instruction == "sdot"


def test_uses_vpdpbusd_where_there_is_one() -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": "icelake-server"})
    assembly = build([make_kernel(*calls.quantized_conv2d(DENSE, 8, 3), target)], target).inspect_source(
        "asm"
    )
    assert assembly.count("vpdpbusd") >= 8
