"""What masks and routers chose as pictures for the page: frames, and maps to lay over them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mattecompress.data.colours import parse_colour
from mattecompress.data.frames import resize
from mattecompress.inspection.decisions import Decision, Decisions
from mattecompress.report import TINT, picture

LONGEST = 320
"""Pixels of a frame's longer side on the page."""


def picture_frames(decisions: Decisions) -> list[str]:
    """The frames as `data:` addresses of small PNGs.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    height, width = decisions.frames.shape[-2:]
    part = min(1.0, LONGEST / max(height, width))
    size = max(1, round(height * part)), max(1, round(width * part))
    return [picture(resize(frame, size)) for frame in decisions.frames]


def picture_decisions(decisions: Decisions) -> list[dict[str, Any]]:
    """Of each mask and router its figures and `maps`, a transparent picture for each frame.

    `across` and `down` are the map's sides as shares of the frame's: a network that pads a frame to whole tokens chooses
    among some that lie beyond its right and lower edge.
    """
    size = decisions.frames.shape[-2:]
    return [
        {**each.as_json(), **_cover(each, size), "maps": [_tint(chosen) for chosen in each.maps]}
        for each in decisions.decisions
    ]


def _cover(decision: Decision, size: Sequence[int]) -> dict[str, float]:
    """Positions are square: the frame divided, or where it was padded the next power of two, as strides are."""
    grid = decision.maps.shape[1:]
    sides = {whole / count for whole, count in zip(size, grid, strict=True)}
    side = max(sides) if len(sides) == 1 else 2 ** math.ceil(math.log2(max(sides)))
    return {"across": side * grid[1] / size[1], "down": side * grid[0] / size[0]}


def _tint(chosen: Tensor) -> str:
    """A map (h,w) as a picture of one colour, opaque where it is set."""
    colour = parse_colour(TINT)[:, None, None].expand(3, *chosen.shape)
    return picture(torch.cat([colour, chosen[None].float()]))
