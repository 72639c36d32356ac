"""Works of any kind, timed in turn."""

import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]


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
