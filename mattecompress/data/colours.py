"""Colours by their hexadecimal names."""

import re

import torch
from torch import Tensor

from mattecompress.errors import UserError


class ColourError(UserError):
    """A text that names no colour."""


def parse_colour(text: str) -> Tensor:
    """(3,) float32 in 0..1 from `#00b140`.

    Raises:
        ColourError: anything else.
    """
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ColourError(f"'{text}' is no colour: write it as #rrggbb, such as #00b140")
    return torch.tensor([int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)])
