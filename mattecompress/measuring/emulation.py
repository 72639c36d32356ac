"""What a frame costs on a processor that is not here: instructions by kernel, cycles of each kernel's hottest loop."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mattecompress.backends import load_backend
from mattecompress.preparation import lower, require_fixed_size
from mattecompress.program import Program


@dataclass(frozen=True)
class LoopReport:
    """The straight code that a kernel spends most in.

    runs: in a frame; instructions: of one run; cycles: of one run by LLVM's model of the processor; limit: what its
    busiest unit needs. Both are None where `llvm-mca` is not installed.
    """

    runs: int
    instructions: int
    cycles: float | None
    limit: float | None


@dataclass(frozen=True)
class KernelReport:
    """Instructions of all calls of one kernel in a frame."""

    name: str
    instructions: int
    loop: LoopReport


@dataclass(frozen=True)
class FrameReport:
    """Instructions of a frame on `target`, the driver's own among them, and those of each kernel, most first."""

    target: str
    arena_bytes: int
    instructions: int
    kernels: tuple[KernelReport, ...]

    def as_json(self) -> dict[str, Any]:
        """The document that `bench --emulate --json` prints."""
        return asdict(self)


def count_frame(program: Program, target: str, frames: Tensor | None = None) -> FrameReport:
    """Build a program for a target and count what a frame takes there: the second of two (2,3,H,W), or of noise.

    Raises:
        TargetError, LinkError, ResolutionError, UnsupportedError, MissingExtraError
        EmulationError: nothing here emulates the target and counts.
    """
    require_fixed_size(program)
    load_backend("tvm")
    from mattecompress.backends.tvm.backend import Freestanding
    from mattecompress.backends.tvm.emulation.cycles import estimate
    from mattecompress.backends.tvm.emulation.instructions import KernelCost, count

    def report(cost: KernelCost) -> KernelReport:
        code = cost.loop.instructions
        cycles = estimate(built.target, code)
        known = (cycles.scheduled, cycles.limit) if cycles else (None, None)
        return KernelReport(cost.name, cost.instructions, LoopReport(cost.loop.runs, len(code), *known))

    with tempfile.TemporaryDirectory() as folder:
        built = Freestanding.of(lower(program), target).link(Path(folder), symbols=True)
        total, costs = count(built, None if frames is None else frames.numpy())
    return FrameReport(target, built.plan.arena_bytes, total, tuple(map(report, costs)))
