"""Random convolutions that the tests of operations and kernels share."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st


@dataclass(frozen=True)
class Convolution:
    """Shape of one convolution; `channels` and `outputs` are per group."""

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    seed: int


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn, channels: int = 70, outputs: int = 24, groups: int = 3) -> Convolution:
    kernel, dilation, padding = draw(pairs(1, 3)), draw(pairs(1, 2)), draw(pairs(0, 2))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = (max(1, least) + draw(st.integers(0, 6)) for least in reach)
    return Convolution(
        batch=draw(st.integers(1, 2)),
        height=height,
        width=width,
        channels=draw(st.integers(1, channels)),
        outputs=draw(st.integers(1, outputs)),
        groups=draw(st.integers(1, groups)),
        kernel=kernel,
        stride=draw(pairs(1, 2)),
        padding=padding,
        dilation=dilation,
        seed=draw(st.integers(0, 2**16)),
    )


def draw_mask(shape: tuple[int, ...], density: float, seed: int) -> torch.Tensor:
    """A float32 mask of about `density`, in fractions and zeros."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(values < density, 1 - values / 2, 0.0)
