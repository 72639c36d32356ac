"""Several ways of computing the same, timed in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
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
    times = time_in_turn({"ours": ours, "peer": peer}, runs)
    ours_ms, peer_ms = (statistics.median(times[name]) for name in ("ours", "peer"))
    return Comparison(threads, runs, ours_ms, peer_name, peer_ms)


def time_in_turn(
    works: Mapping[str, Work],
    runs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    rest: float = 0,
) -> dict[str, list[float]]:
    """Milliseconds of each of `runs` runs of every work, round after round, after one warm-up of each.

    Rounds spread whatever else the machine does over all works alike.

    Args:
        works: what to time, by name.
        runs: how often each.
        progress: told after each round how many are done, and of how many.
        rest: seconds before each run, in which the threads of the run before stop spinning.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for done in range(1, runs + 1):
        for name, work in works.items():
            time.sleep(rest)
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) * 1e3)
        progress(done, runs)
    return times
