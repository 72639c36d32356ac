"""LLVM's model of a loop, where llvm-mca is installed."""

import pytest

from mattecompress.backends.tvm.emulation import cycles
from mattecompress.backends.tvm.targets import find_target

TARGET = find_target("cortex-a76")
CHAIN = ["fadd v0.4s, v0.4s, v1.4s", "subs x1, x1, #1", "b.ne #0x1154e00"]
FREE = [f"fadd v{i}.4s, v{i + 8}.4s, v16.4s" for i in range(8)]


@pytest.mark.needs("llvm-mca")
def test_a_chain_takes_longer_than_its_limit() -> None:
    chain, free = cycles.estimate(TARGET, CHAIN), cycles.estimate(TARGET, FREE)
    assert chain and chain.scheduled > chain.limit
    assert free and free.scheduled == pytest.approx(free.limit, rel=0.2)


@pytest.mark.needs("llvm-mca")
def test_an_unknown_instruction_has_no_estimate() -> None:
    assert cycles.estimate(TARGET, ["frobnicate v0"]) is None


def test_no_analyser_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "ANALYSER", "no-such-analyser")
    assert cycles.estimate(TARGET, CHAIN) is None
