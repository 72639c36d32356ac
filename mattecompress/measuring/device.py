"""Time of a frame on a device elsewhere, through TVM's RPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mattecompress.backends import load_backend
from mattecompress.preparation import lower, require_fixed_size
from mattecompress.program import Program


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a frame, one thread; those of a reference program too, if there was one."""

    target: str
    address: str
    runs: int
    ours_ms: float
    reference_ms: float | None

    def as_json(self) -> dict[str, Any]:
        """The document that `bench --rpc --json` prints: that of `bench`, and where it was measured."""
        peer = None if self.reference_ms is None else {"name": "reference", "ms": self.reference_ms}
        return {
            "target": self.target,
            "rpc": self.address,
            "threads": 1,
            "runs": self.runs,
            "ours_ms": self.ours_ms,
            "peer": peer,
            "speedup": None if self.reference_ms is None else self.reference_ms / self.ours_ms,
        }


def time_remotely(
    programs: Sequence[Program], target: str, address: str, key: str | None = None, runs: int = 20
) -> Timing:
    """Compile one program, or one and its reference, for `target` and time them in turn at `HOST:PORT`.

    key: a tracker listens there, which lends devices of that key.

    Raises:
        TargetError, LinkError, ResolutionError, UnsupportedError, MissingExtraError
        RemoteError: the device does not answer or refuses the code.
    """
    for program in programs:
        require_fixed_size(program)
    load_backend("tvm")
    from mattecompress.backends.tvm import remote
    from mattecompress.backends.tvm.targets import find_target

    place = remote.Address.parse(address, key)
    ours, *others = remote.time_remotely(list(map(lower, programs)), find_target(target), place, runs)
    return Timing(target, address, runs, ours, others[0] if others else None)
