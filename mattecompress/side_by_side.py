"""Independent work side by side, on as many threads as torch may use.

Threads that share one operation on small tensors wait for each other longer than they compute, so each piece of work
gets one thread, or more only where there are fewer pieces than threads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What a function yields for each item, in order; gradients are recorded as in the calling thread.

    With at least as many items as threads the results are the same bits with any number of threads.
    """
    if not items:
        return []
    threads, recorded = torch.get_num_threads(), torch.is_grad_enabled()
    share = max(1, threads // len(items))

    def alone(item: T) -> R:
        torch.set_num_threads(share)
        with torch.set_grad_enabled(recorded):
            return function(item)

    try:
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)
