from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.importer import bands
from mattecompress.backends.tvm.importer.bands import choose_bounds, cut_into_bands
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import HOST, Net, inputs_of, program_of

matte = torch.ops.matte
SIZE = (50, 10)
TENSOR = 4 * 12 * SIZE[0] * SIZE[1]


def tail_net(tail, *floats: str) -> Program:
    """A one-bit convolution and what `tail` makes of its result by float layers."""
    net = Net(
        lambda s, x: tail(s, F.relu(s.b(F.relu(s.a(x))))),
        a=nn.Conv2d(3, 16, 3, padding=1),
        b=nn.Conv2d(16, 12, 3, padding=1),
        c=nn.Conv2d(12, 12, 5, padding=2),
        d=nn.Conv2d(12, 2, 1),
        strided=nn.Conv2d(12, 2, 3, 2, 1),
    )
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    program = program_of(net, (1, 3, *SIZE))
    program = parse_pipeline(f"binarize{{method=react exclude=[{','.join(floats)}]}}").run(program, Context())
    for call in program.called_modules(BinaryConv2d):
        bias = program.module(call).activation_bias
        assert isinstance(bias, nn.Parameter)
        nn.init.normal_(bias, std=0.3)
    return parse_pipeline("lower").run(program, Context())


@given(st.integers(32, 2200), st.integers(1, 40), st.integers(0, 3))
def test_bounds_divide_the_rows_about_evenly(height: int, count: int, reach: int) -> None:
    bounds = choose_bounds(height, count, reach)
    sizes = [end - start for start, end in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(sizes)) == (0, height, min(count, height // bands.SMALLEST))
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 3 * bands.ROWS


@pytest.mark.parametrize("count", [2, 3])
def test_bands_compute_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tail_net(lambda s, x: s.d(F.relu(s.c(x))), "c", "d")
    cut = cut_into_bands(program, TENSOR // count)
    assert len(cut.find(matte.binary_conv2d.default)) == count
    assert len(program.find(matte.binary_conv2d.default)) == 1
    inputs = inputs_of(program)
    expected = program.run(**inputs)["out0"]
    torch.testing.assert_close(cut.run(**inputs)["out0"], expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(bands.cut_into_bands, "__defaults__", (TENSOR // count,))
    result = compile_host(lower(program, HOST), HOST).run(**inputs)["out0"]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tail", "floats"),
    [
        (lambda s, x: s.strided(x), ["strided"]),
        (lambda s, x: s.d(s.c(x) + x), ["c", "d"]),
        (lambda s, x: s.c(x), ["c"]),
    ],
    ids=["another size", "read twice", "a result as large"],
)
def test_others_stay_whole(tail, floats: list[str]) -> None:
    program = tail_net(tail, *floats)
    assert cut_into_bands(program, 1) == program


def test_small_tensors_stay_whole() -> None:
    program = tail_net(lambda s, x: s.d(F.relu(s.c(x))), "c", "d")
    assert cut_into_bands(program, TENSOR) == program
