"""Several ways of computing the same, timed in turn."""

import statistics
from dataclasses import dataclass
from typing import Any

from mattecompress.timing import Work, time_in_turn


@dataclass(frozen=True)
class Comparison:
    """Median milliseconds a run of ours and of the peer, from runs that alternate."""

    threads: int
    runs: int
    ours_ms: float
    peer_name: str
    peer_ms: float

    def as_json(self) -> dict[str, Any]:
        """The document that `bench --json` prints."""
        return {
            "threads": self.threads,
            "runs": self.runs,
            "ours_ms": self.ours_ms,
            "peer": {"name": self.peer_name, "ms": self.peer_ms},
            "speedup": self.peer_ms / self.ours_ms,
        }


def compare(ours: Work, peer: Work, peer_name: str, threads: int, runs: int) -> Comparison:
    """Time `ours` and `peer` in turn, `runs` times each after one warm-up."""
    times = time_in_turn({"ours": ours, "peer": peer}, runs)
    ours_ms, peer_ms = (statistics.median(times[name]) for name in ("ours", "peer"))
    return Comparison(threads, runs, ours_ms, peer_name, peer_ms)
