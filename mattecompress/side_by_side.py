"""Independent work side by side, each piece on one thread.

Threads that share one operation on tensors of this size wait for each other longer than they compute.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function yields for each item, in order; as many at a time as torch may use threads.

    Gradients are recorded as in the calling thread. The results are the same bits with any number of threads.
    """
    threads, recorded = torch.get_num_threads(), torch.is_grad_enabled()

    def alone(item: T) -> R:
        torch.set_num_threads(1)
        with torch.set_grad_enabled(recorded):
            return function(item)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)
