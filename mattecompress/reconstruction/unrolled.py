"""A program unrolled over short sequences, with gradients through its states.

    loss = mean (a - a*)^2 + weight * mean |x_t - sample(x_{t-1}, p + flow_{t -> t-1}(p))|,  the second from frame 2 on

x is a, or a - a*: what moves with the flow may not change, or the error of it, which leaves a* itself without loss.

Source: PTQ4VM section 4.3, for x = a. Its published code has each frame against the next one, which is the same with
time turned around, and samples on a grid for which a flow of zero is not the identity; here it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.program import Program


@dataclass(frozen=True)
class Piece:
    """A piece of a clip, from zero states.

    frames: each frame's inputs by name. zeros: the states.
    alpha: (T,1,H,W), what is aimed at. flow: (T-1,2,H,W) in pixels, x first, from each frame to the one before.
    """

    frames: Sequence[dict[str, Tensor]]
    zeros: dict[str, Tensor]
    alpha: Tensor
    flow: Tensor | None = None


@dataclass(frozen=True)
class FlowTerm:
    """The term's weight, and what may not change along the flow."""

    weight: float
    of: Literal["alpha", "error"] = "alpha"


def unrolled_alpha(program: Program, alpha: str, sequence: Piece) -> Tensor:
    """(T,1,H,W), the output called `alpha` over the sequence."""
    states, found = sequence.zeros, []
    for frame in sequence.frames:
        outputs = program.run(**frame, **states)
        states = {pair.input: outputs[pair.output] for pair in program.states}
        found.append(outputs[alpha])
    return torch.cat(found)


def sequence_loss(alpha: Tensor, sequence: Piece, term: FlowTerm) -> Tensor:
    """A scalar; the flow term counts where the sequence has flow."""
    loss = F.mse_loss(alpha, sequence.alpha)
    if sequence.flow is None or len(alpha) < 2:
        return loss
    moving = alpha - sequence.alpha if term.of == "error" else alpha
    return loss + term.weight * (moving[1:] - warp(moving[:-1], sequence.flow)).abs().mean()


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """image (N,C,H,W) sampled at each pixel's place plus flow (N,2,H,W), x first, bilinear, borders repeated."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32).view(1, height, 1)
    columns = torch.arange(width, dtype=torch.float32).view(1, 1, width)
    x = (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    y = (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    return F.grid_sample(image, torch.stack([x, y], -1), padding_mode="border", align_corners=True)
