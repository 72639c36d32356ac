"""Whether a program rounds floats to codes or signs, so that their last place may decide which."""

import torch

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program

matte = torch.ops.matte

OPERATIONS = (
    matte.quantize.default,
    matte.pack_signs.default,
    matte.pack_units.default,
    matte.pack_plane.default,
)


def rounds(program: Program) -> bool:
    """Whether any operation or module of a program does."""
    modules = program.called_modules(BinaryConv2d) or program.called_modules(FakeQuantize)
    return bool(modules) or any(program.find(target) for target in OPERATIONS)
