"""Stopping once learning brings nothing more, at the best that it has been."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHECK_EVERY = 10


class Patience:
    """Keeps the values of least error.

    values: what is learned. error: of the values as they are, lower is better.
    limit: how many iterations the error may go without falling; it is looked at every 10.
    """

    def __init__(self, values: Sequence[Tensor], error: Callable[[], float], limit: int) -> None:
        self.values, self.error, self.limit = values, error, limit
        self.least, self.since = math.inf, 0
        self.counting = False
        self._look(0)

    def exhausted(self, step: int) -> bool:
        """Whether to stop after `step` iterations; counting begins with the first that is asked about."""
        if not self.counting:
            self.counting, self.since = True, step
        if step % CHECK_EVERY == 0:
            self._look(step)
        return step - self.since >= self.limit

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the values of least error."""
        for value, best in zip(self.values, self.best, strict=True):
            value.copy_(best)

    def _look(self, step: int) -> None:
        error = self.error()
        if error < self.least:
            self.least, self.since = error, step
            self.best = [value.detach().clone() for value in self.values]
