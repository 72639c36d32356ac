from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mattecompress.capturing.tracing import capture
from mattecompress.passes.tile_decoder import StripError, TileDecoder
from mattecompress.pipeline import PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from tests.models.vit import random_inputs, tiny_program


class Decoder(nn.Module):
    """A detail branch that shrinks, and a way back up, twice."""

    def __init__(self, kernel: int = 3, pooled: bool = False) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, kernel, 2, kernel // 2)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(8, 4, 3, padding=1)
        self.last = nn.Conv2d(7, 1, kernel, padding=kernel // 2)
        self.pooled = pooled

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        detail = self.norm(self.down(x)).relu()
        up = interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
        up = self.mix(torch.cat([detail, up], 1))
        if self.pooled:
            up = up - up.mean((2, 3), keepdim=True)
        up = interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(torch.cat([x, up], 1)).sigmoid()


class Net(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 4, 4)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, self.encoder(x)) * 1.0


def network(height: int, kernel: int = 3, pooled: bool = False) -> Program:
    torch.manual_seed(0)
    return capture(Net(Decoder(kernel, pooled)).eval(), Signature((("x", (2, 3, height, 8)),), ("y",)), "net")


class Adding(nn.Module):
    """A decoder that adds to the picture what it holds."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.register_buffer("held", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x + self.held)
        return y


def alone(decoder: nn.Module, *shape: int) -> Program:
    """A network of nothing but a decoder."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(decoder=decoder)).eval()
    return capture(net, Signature((("x", shape),), ("y",)), "net")


PROGRAMS = {kernel: network(32, kernel) for kernel in (1, 3, 5)}


@given(rows=st.integers(1, 40), kernel=st.sampled_from(sorted(PROGRAMS)))
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_strips_of_any_height_compute_the_same(rows: int, kernel: int) -> None:
    program, x = PROGRAMS[kernel], torch.rand(2, 3, 32, 8)
    result = TileDecoder(rows=rows)(program)
    assert result.modified == (rows < 32)
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 16, 8), (1, 3, 16, 1), (1, 3, 1, 8), (3, 1, 1)])
@torch.no_grad()
def test_images_that_are_held_are_cut_where_they_have_rows(shape: tuple[int, ...]) -> None:
    program, x = alone(Adding(*shape), 2, 3, 16, 8), torch.rand(2, 3, 16, 8)
    result = TileDecoder(rows=5)(program)
    assert result.notes == "4 strips of 5 rows"
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-6)


def test_is_done_once_and_says_what() -> None:
    result = TileDecoder(rows=12)(PROGRAMS[3])
    assert result.notes == "3 strips of 12 rows"
    assert not TileDecoder(rows=12)(result.program).modified
    tallest = max(
        int(result.program.facts(node).shape[2])
        for node in result.program.find(torch.ops.aten.conv2d.default)[1:]
    )
    assert tallest == 12


def test_golden(golden) -> None:
    golden(print_program(TileDecoder(rows=8)(network(16)).program))


def test_refuses() -> None:
    with pytest.raises(PreconditionError, match="mean.dim, cannot be computed strip by strip"):
        TileDecoder()(network(32, pooled=True))
    with pytest.raises(PreconditionError, match="add.Tensor, cannot be computed strip by strip"):
        TileDecoder()(alone(Adding(16, 8), 2, 3, 16, 8))
    with pytest.raises(PreconditionError, match="linear.default, cannot be computed strip by strip"):
        TileDecoder()(alone(nn.Linear(4, 2), 2, 4))
    with pytest.raises(PreconditionError, match="no operation is in the scope 'head'"):
        TileDecoder(decoder="head")(PROGRAMS[3])
    with pytest.raises(StripError, match="rows=0"):
        TileDecoder(rows=0)


@torch.no_grad()
def test_of_a_transformer() -> None:
    program = tiny_program()
    result = parse_pipeline("sdpa{rows=20}").run(program)
    assert result.history[-1].text == "tile-decoder{rows=20}"
    inputs = random_inputs(program)
    torch.testing.assert_close(
        result.run(**inputs)["alpha"], program.run(**inputs)["alpha"], rtol=0, atol=1e-5
    )
