"""What reading one thing may take, in time and in memory."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

SECONDS = 5.0
BYTES = 2**30


class HangError(AssertionError):
    """Reading took too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise HangError after some seconds, and let nothing allocate more than a GiB."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise HangError(f"not done after {SECONDS:g} s")

    usual, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (usual, hard))
        signal.signal(signal.SIGALRM, before)
