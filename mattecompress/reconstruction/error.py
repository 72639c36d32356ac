"""How far a unit's outputs are from those of its float form, over all frames."""

import math
from collections.abc import Sequence

from torch import Tensor

from mattecompress.reconstruction.store import Value


class Error:
    """Sums of squares; `ratio` is that of the difference over that of the float outputs."""

    def __init__(self) -> None:
        self.noise = self.signal = 0.0

    def add(self, found: Sequence[Value], expected: Sequence[Value]) -> None:
        """Take in the outputs of one frame."""
        for value, target in zip(found, expected, strict=True):
            if isinstance(value, Tensor) and isinstance(target, Tensor) and value.is_floating_point():
                self.noise += float((value - target).double().square().sum())
                self.signal += float(target.double().square().sum())

    @property
    def ratio(self) -> float:
        """0 where both are equal."""
        return self.noise / self.signal if self.signal else float(self.noise > 0)


def decibels(ratio: float) -> float:
    """The signal to quantization noise ratio."""
    return -10 * math.log10(ratio) if ratio > 0 else math.inf
