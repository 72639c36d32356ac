import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.passes.lower_functions import LowerFunctions
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

aten, matte = torch.ops.aten, torch.ops.matte


class Functions(nn.Module):
    """One of each; `codes` says whether anything rounds."""

    def __init__(self, codes: bool) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, x: Tensor) -> Tensor:
        if self.codes:
            x = matte.dequantize(matte.quantize(x, 0.02, 100, 8), 0.02, 100)
        gate = torch.sigmoid(F.adaptive_avg_pool2d(x, 1)) + x.mean((2, 3), keepdim=True)
        kept = F.interpolate(torch.tanh(x) * gate, scale_factor=2.0, mode="bilinear")
        return F.interpolate(kept, (9, 11), mode="bilinear", align_corners=True) + kept.mean(1).mean()


def program(codes: bool = True) -> Program:
    signature = Signature((("x", (1, 3, 6, 8)),), ("y",))
    return capture(Functions(codes), signature, "functions")


def test_golden(golden) -> None:
    golden(re.sub(r" +$", "", print_program(LowerFunctions()(program()).program), flags=re.MULTILINE))


def test_computes_the_same() -> None:
    result = LowerFunctions()(program())
    assert result.modified and result.notes == "6 functions with stated rounding"
    x = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    expected, given = (p.run(x=x)["y"] for p in (program(), result.program))
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_what_does_not_round_is_left_alone() -> None:
    assert not LowerFunctions()(program(codes=False)).modified


def test_means_that_are_none_of_a_plane_stay() -> None:
    result = LowerFunctions()(program()).program
    assert len(result.find(aten.mean.dim)) + len(result.find(aten.mean.default)) == 2
    assert len(result.find(matte.plane_mean.default)) == 2


@pytest.mark.parametrize("codes", [True, False])
def test_is_idempotent_and_prints_and_parses(codes: bool) -> None:
    once = LowerFunctions()(program(codes)).program
    assert not LowerFunctions()(once).modified
    assert parse_program(print_program(once), once.state_dict()) == once
