"""Two ways of computing the same, timed in turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Work = Callable[[], object]


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
    ours()
    peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for work, measured in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            work()
            measured.append(time.perf_counter() - start)
    ours_ms, peer_ms = (statistics.median(measured) * 1e3 for measured in times)
    return Comparison(threads, runs, ours_ms, peer_name, peer_ms)
