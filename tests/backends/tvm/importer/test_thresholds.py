import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mattecompress.backends import UnsupportedError
from mattecompress.backends.tvm.backend import Tvm
from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.importer.thresholds import join_packings, limits_of
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import HOST, Net, inputs_of, program_of

matte = torch.ops.matte


@given(st.lists(st.booleans(), min_size=3, max_size=3 + 8).filter(lambda bits: len(bits) % 2 == 1))
def test_limits_give_the_bits_or_nothing(bits: list[bool]) -> None:
    most = len(bits) // 2
    limits = limits_of(torch.tensor([bits]), most)
    changes = sum(a != b for a, b in zip(bits[1:], bits, strict=False))
    assert (limits is None) == (changes > 2)
    if limits is not None:
        low, high = (int(limit) for limit in limits)
        sums = range(-most, most + 1)
        inside = [low <= s <= high if low <= high else s >= low or s <= high for s in sums]
        assert inside == bits


def binary_net(middle, channels: int = 16) -> Program:
    """Four convolutions, the inner two of one bit with random thresholds; `middle` stands between them."""
    net = Net(
        lambda s, x: s.d(F.relu(s.c(middle(s, s.b(F.relu(s.a(x))))))),
        a=nn.Conv2d(3, channels, 3, padding=1),
        b=nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
        c=nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        d=nn.Conv2d(channels, 2, 1),
        ramp=nn.Linear(8, 1),
        column=nn.Linear(1, 9),
    )
    torch.manual_seed(0)
    for tensor in (*net.parameters(), net.b[1].running_mean):
        nn.init.normal_(tensor)
    program = parse_pipeline("binarize{method=react}").run(program_of(net, (1, 3, 9, 8)), Context())
    for call in program.called_modules(BinaryConv2d):
        bias = program.module(call).activation_bias
        assert isinstance(bias, nn.Parameter)
        nn.init.normal_(bias, std=0.3)
    return parse_pipeline("lower").run(program, Context())


def targets(program: Program) -> list[object]:
    return [node.target for node in program.operations()]


@pytest.mark.parametrize("middle", [lambda s, x: F.relu(x), lambda s, x: F.hardswish(x), lambda s, x: x])
def test_layers_hand_on_bits(middle) -> None:
    program = binary_net(middle)
    before = targets(program)
    joined = join_packings(program)
    assert targets(program) == before
    assert targets(joined).count(matte.binary_conv2d_bits.default) == 1
    assert (
        targets(joined).count(matte.pack_signs.default)
        == targets(program).count(matte.pack_signs.default) - 1
    )
    inputs = inputs_of(program)
    assert torch.equal(joined.run(**inputs)["out0"], program.run(**inputs)["out0"])
    result = compile_host(lower(program, HOST), HOST).run(**inputs)["out0"]
    torch.testing.assert_close(result, program.run(**inputs)["out0"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "middle",
    [
        lambda s, x: x + F.avg_pool2d(x, 3, 1, 1),
        lambda s, x: torch.sigmoid(x),
        lambda s, x: x * s.ramp.weight,
        lambda s, x: x * s.column.weight,
    ],
    ids=["read twice", "rounds differently elsewhere", "not the same in every column", "nor in every row"],
)
def test_other_layers_stay(middle) -> None:
    program = binary_net(middle)
    assert targets(join_packings(program)) == targets(program)


def test_more_taps_than_a_byte_counts_are_refused() -> None:
    wide = nn.Conv2d(8, 8, 17, padding=8, groups=8)
    program = program_of(nn.Sequential(nn.Conv2d(3, 8, 1), wide, nn.Conv2d(8, 2, 1)), (1, 3, 20, 20))
    program = parse_pipeline("binarize{method=react},lower").run(program, Context())
    with pytest.raises(UnsupportedError, match="at most 255"):
        Tvm().compile(program)


def test_channels_that_fill_no_byte_stay() -> None:
    program = binary_net(lambda s, x: F.relu(x), channels=12)
    assert targets(join_packings(program)) == targets(program)
