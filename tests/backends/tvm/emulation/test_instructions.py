"""Instruction counts are the same on every run, and belong to kernels."""

from pathlib import Path

import pytest
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("ziglang")

from mattecompress.backends.tvm.backend import Freestanding
from mattecompress.backends.tvm.emulation.instructions import EmulationError, count
from mattecompress.measuring.emulation import count_frame
from mattecompress.program import Program
from tests.backends.tvm.nets import Net, program_of

MACS = 8 * 12 * 16 * 16
NOISE = 100
"""The driver's start asks for memory once or twice, depending on where the system puts it."""


@pytest.fixture(scope="module")
def program() -> Program:
    layers = {"first": nn.Conv2d(16, 16, 1), "second": nn.Conv2d(16, 16, 1)}
    return program_of(Net(lambda self, x: self.second(self.first(x).relu()), **layers), (1, 16, 8, 12))


@pytest.mark.needs("qemu-aarch64")
def test_counts_by_kernel_and_the_same_twice(program: Program, tmp_path: Path) -> None:
    built = Freestanding.of(program, "cortex-a76").link(tmp_path, symbols=True)
    total, kernels = count(built)
    again, same = count(built)
    assert same == kernels
    assert again == pytest.approx(total, abs=NOISE)
    assert [kernel.name.partition("_1x1")[0] for kernel in kernels[:2]] == [
        "fused_convolution",
        "convolution",
    ]
    for kernel in kernels[:2]:
        assert MACS / 4 < kernel.instructions < MACS / 2
        assert any("fmla" in line for line in kernel.loop.instructions)
        assert kernel.loop.runs * len(kernel.loop.instructions) <= kernel.instructions
    assert sum(kernel.instructions for kernel in kernels) < total


@pytest.mark.needs("qemu-aarch64")
def test_symbols_change_no_instruction_of_the_frame(program: Program, tmp_path: Path) -> None:
    kernels = Freestanding.of(program, "cortex-a76")
    named, bare = kernels.link(tmp_path / "named", symbols=True), kernels.link(tmp_path / "bare")
    assert named.path.stat().st_size > bare.path.stat().st_size
    assert count(bare)[0] == pytest.approx(count(named)[0], abs=NOISE)


def test_this_machine_is_not_emulated(program: Program) -> None:
    with pytest.raises(EmulationError, match="other than host"):
        count_frame(program, "host")
