"""The importer and schedules against torch, on small nets through the whole path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mattecompress.backends import UnsupportedError
from mattecompress.backends.tvm.backend import Tvm
from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.importer.program import import_program, supports
from mattecompress.backends.tvm.schedule import rules_used
from tests.backends.tvm.nets import HOST, Net, PairNet, compiled, inputs_of, largest_difference, program_of

few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def kernels(program):
    return sorted(rules_used(lower(program, HOST)))


@few
@given(
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    size=st.tuples(st.integers(3, 19), st.integers(3, 19)),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    bias=st.booleans(),
)
def test_convolution(channels, outputs, size, kernel, stride, dilation, padding, bias):
    if min(size) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=bias)
    assert largest_difference(program_of(layer, (1, channels, *size))) < 1e-5


@few
@given(
    groups=st.integers(2, 6),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
)
def test_grouped_convolution(groups, inputs, outputs, stride, padding):
    layer = nn.Conv2d(groups * inputs, groups * outputs, 3, stride, padding, groups=groups)
    assert largest_difference(program_of(layer, (2, groups * inputs, 7, 9))) < 1e-5


@few
@given(
    channels=st.integers(2, 70),
    size=st.tuples(st.integers(5, 19), st.integers(5, 19)),
    kernel=st.sampled_from([3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
)
def test_depthwise_convolution(channels, size, kernel, stride, dilation):
    padding = (kernel - 1) // 2 * dilation
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)
    assert largest_difference(program_of(layer, (1, channels, *size))) < 1e-5


@few
@given(
    channels=st.integers(9, 40),
    outputs=st.integers(9, 40),
    size=st.tuples(st.integers(8, 21), st.integers(8, 21)),
    padding=st.integers(0, 2),
)
def test_winograd_convolution(channels, outputs, size, padding):
    program = program_of(nn.Conv2d(channels, outputs, 3, padding=padding), (2, channels, *size))
    assert largest_difference(program) < 5e-5


def test_winograd_reads_no_image_but_its_own():
    program = program_of(nn.Conv2d(40, 9, 3), (2, 40, 8, 8))
    images, artifact = inputs_of(program)["x"], compiled(program)
    expected = artifact.run(x=images)["out0"][0].clone()
    images[1] = torch.nan
    assert torch.equal(artifact.run(x=images)["out0"][0], expected)


def test_winograd_takes_what_it_speeds_up():
    program = program_of(nn.Conv2d(35, 16, 3, padding=1), (1, 35, 32, 32))
    assert "winograd" in rules_used(lower(program, HOST)).values()
    for layer in (nn.Conv2d(35, 16, 3, 2, 1), nn.Conv2d(35, 16, 3, dilation=2), nn.Conv2d(35, 16, 5)):
        assert "winograd" not in rules_used(lower(program_of(layer, (1, 35, 32, 32)), HOST)).values()


def test_a_resize_of_a_resize():
    def expression(self, x):
        down = F.interpolate(x, (4, 3), mode="bilinear")
        back = F.interpolate(down, (8, 6), mode="bilinear")
        return F.interpolate((x - back).abs(), (16, 12), mode="bilinear")

    assert largest_difference(program_of(Net(expression), (1, 3, 8, 6))) < 1e-6


ELEMENTWISE = {
    "relu": torch.relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: x.clamp(-0.5, 1),
    "clamp from below": lambda x: x.clamp(min=-0.25),
    "relu6": F.relu6,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "negate": lambda x: -x,
    "absolute": torch.abs,
    "from a constant": lambda x: 1 - x,
    "larger or equal": lambda x: torch.where(x >= 0.25, x, x * 0.5),
    "larger of two": lambda x: torch.where(x > x.neg(), x, x * 0.5) + torch.where(x >= x[:, :1], x, -x),
    "an integer and half of one": lambda x: torch.where(x.to(torch.int32) >= 0.5, x, -x),
    "integers and floats": lambda x: torch.where((2 * x).to(torch.int32) >= x, x, x * 0.5),
    "compared once": lambda x: F.relu(torch.where(x > 0, x * 3, x)) + x,
    "add scaled": lambda x: torch.add(x, x.mean(1, keepdim=True), alpha=0.5),
    "times a constant plus": lambda x: x * 0.3 + x,
    "over a constant": lambda x: x / 3.0,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_rounds_as_torch_does(name):
    program = program_of(Net(lambda self, x: ELEMENTWISE[name](x)), (1, 5, 6, 7))
    assert largest_difference(program) <= (6e-8 if name == "add scaled" else 0)


@pytest.mark.parametrize("slopes", [1, 5])
@pytest.mark.parametrize("convolved", [False, True])
def test_prelu_has_a_slope_for_each_channel_or_for_all(slopes, convolved):
    prelu = nn.PReLU(slopes)
    nn.init.uniform_(prelu.weight)
    before = nn.Conv2d(5, 5, 1) if convolved else nn.Identity()
    program = program_of(nn.Sequential(before, prelu), (2, 5, 6, 7))
    assert largest_difference(program) <= (1e-6 if convolved else 0)
    assert sum("prelu" in name for name in kernels(program)) == 1


@pytest.mark.parametrize(
    ("function", "tolerance"), [(torch.sigmoid, 2e-7), (torch.tanh, 3e-7), (torch.exp, 1e-5)]
)
def test_transcendental_functions(function, tolerance):
    program = program_of(Net(lambda self, x: function(4 * x)), (1, 3, 40, 40))
    inputs = inputs_of(program)
    result = compiled(program).run(**inputs)["out0"]
    expected = function(4 * inputs["x"].double())
    assert ((result - expected).abs() / expected.abs().clamp(min=1)).max() < tolerance


@few
@given(
    channels=st.lists(st.integers(1, 21), min_size=1, max_size=3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    start=st.integers(0, 3),
)
def test_join_then_slice(channels, size, start):
    total = 2 * sum(channels)

    def expression(self, x, y):
        pieces = [piece for source in (x, y) for piece in source.split(channels, 1)]
        return torch.cat(pieces[::-1], 1)[:, min(start, total - 1) :, 1:].clamp(-1, 1)

    shape = (1, sum(channels), *size)
    assert largest_difference(program_of(PairNet(expression), shape, shape)) == 0


@pytest.mark.parametrize("start", [-9, -3, -2])
def test_a_slice_that_starts_from_the_end(start):
    program = program_of(Net(lambda self, x: x[:, start:].exp()), (1, 3, 5, 6))
    assert largest_difference(program) < 1e-5


@few
@given(
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    factor=st.sampled_from([0.25, 0.5, 1.7, 2.0, 4.0]),
    align_corners=st.booleans(),
)
def test_resize(channels, size, factor, align_corners):
    if min(size) * factor < 1:
        return

    def expression(self, x):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)

    assert largest_difference(program_of(Net(expression), (1, channels, *size))) < 1e-5


def test_resize_to_a_size():
    def expression(self, x):
        return F.interpolate(x, (11, 5), mode="bilinear", align_corners=False)

    assert largest_difference(program_of(Net(expression), (2, 4, 7, 9))) < 3e-6


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_resize_of_every_second_row(factor):
    def expression(self, x):
        return F.interpolate(x[:, :, ::2], scale_factor=factor, mode="bilinear", align_corners=False)

    assert largest_difference(program_of(Net(expression), (1, 3, 16, 24))) < 1e-6


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_average_pool(ceil_mode, include, padding):
    layer = nn.AvgPool2d(3, 2, padding, ceil_mode, include)
    assert largest_difference(program_of(layer, (1, 19, 8, 11))) < 1e-6


def test_max_pool():
    assert largest_difference(program_of(nn.MaxPool2d(3, 2, 1), (1, 19, 8, 11))) == 0


def test_max_pool_whose_last_window_reaches_outside():
    layer = nn.MaxPool2d(2, 2, dilation=4, ceil_mode=True)
    assert largest_difference(program_of(layer, (1, 3, 6, 6))) == 0


@few
@given(
    size=st.tuples(st.integers(2, 9), st.integers(2, 40)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    stride=st.integers(1, 2),
)
def test_max_pool_of_one_channel(size, kernel, stride):
    layer = nn.MaxPool2d(kernel, stride, (kernel[0] // 2, kernel[1] // 2))
    assert largest_difference(program_of(layer, (2, 1, *size))) == 0


@pytest.mark.parametrize("axes", [(1,), (2, 3)])
def test_means(axes):
    program = program_of(Net(lambda self, x: x.mean(axes, keepdim=True)), (2, 21, 30, 40))
    assert largest_difference(program) < 1e-6


def test_residual_block_is_three_kernels_between_the_layouts():
    net = Net(
        lambda self, x: x + self.b(F.hardswish(self.a(x))),
        a=nn.Conv2d(24, 40, 3, padding=1),
        b=nn.Conv2d(40, 24, 1),
    )
    program = program_of(net, (1, 24, 10, 12))
    assert largest_difference(program) < 1e-5
    assert kernels(program) == [
        "fused_convolution_1x1_40_24_add",
        "fused_winograd_3x3_24_40_hardswish",
        "to_nchw",
        "to_nhwc",
    ]


def gated_unit(channels: int) -> PairNet:
    def expression(self, x, h):
        reset, update = torch.sigmoid(self.ih(torch.cat([x, h], 1))).split(channels, 1)
        candidate = torch.tanh(self.hh(torch.cat([x, reset * h], 1)))
        return (1 - update) * h + update * candidate

    return PairNet(
        expression,
        ih=nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        hh=nn.Conv2d(2 * channels, channels, 3, padding=1),
    )


@pytest.mark.parametrize("channels", [4, 20])
def test_gated_unit_is_two_kernels_between_the_layouts(channels):
    program = program_of(gated_unit(channels), (1, channels, 6, 10), (1, channels, 6, 10))
    assert largest_difference(program) < 1e-5
    assert len([name for name in kernels(program) if "to_n" not in name]) == 2


def test_squeeze_and_excite_is_gathered():
    def expression(self, x):
        x = torch.relu(self.a(x))
        gate = F.hardsigmoid(self.b(F.adaptive_avg_pool2d(x, 1)))
        return self.c(x * gate)

    net = Net(expression, a=nn.Conv2d(3, 24, 3, 2, 1), b=nn.Conv2d(24, 24, 1), c=nn.Conv2d(24, 9, 1))
    program = program_of(net, (1, 3, 17, 23))
    assert largest_difference(program) < 1e-5
    assert not [name for name in kernels(program) if "mul" in name]


def test_decoder_stage_joins_and_resizes_inside_the_convolution():
    def expression(self, x, y):
        up = F.interpolate(torch.cat([x[:, :5], x[:, 5:]], 1), scale_factor=2.0, mode="bilinear")
        return torch.relu(self.a(torch.cat([up[:, :, :9, :13], y], 1)))

    program = program_of(PairNet(expression, a=nn.Conv2d(13, 16, 3, padding=1)), (1, 10, 5, 7), (1, 3, 9, 13))
    assert largest_difference(program) < 1e-5
    assert len([name for name in kernels(program) if "to_n" not in name]) == 1


def test_a_value_read_twice_is_written_once():
    def expression(self, x):
        x = F.hardswish(self.a(x))
        return x * 2, self.b(x)

    net = Net(expression, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1))
    assert largest_difference(program_of(net, (1, 3, 5, 5), outputs=2)) < 1e-5


def test_outputs_may_repeat_and_be_inputs():
    program = program_of(Net(lambda self, x: (x, x[:, 1:], torch.relu(x))), (1, 3, 5, 6), outputs=3)
    assert largest_difference(program) == 0


def test_every_kernel_has_a_rule():
    net = Net(
        lambda self, x: self.b(F.avg_pool2d(self.a(x), 2)) * 2,
        a=nn.Conv2d(3, 8, 3, padding=1, groups=1),
        b=nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )
    assert "serial" not in rules_used(lower(program_of(net, (1, 3, 8, 8)), HOST)).values()


REFUSED = {
    "is a module": Net(lambda self, x: self.bn(x), bn=nn.BatchNorm2d(4)).eval(),
    "no kernel for aten.cumsum": Net(lambda self, x: x.cumsum(1)),
    "adaptive pooling to [2, 2]": nn.AdaptiveAvgPool2d(2),
    "a mean must keep": Net(lambda self, x: x.mean((1, 3))),
    "its bias is computed": Net(lambda self, x: F.linear(x, self.l.weight, x[0, 0, 0]), l=nn.Linear(6, 6)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_unsupported_nodes_say_why(reason):
    program = program_of(REFUSED[reason], (1, 4, 6, 6))
    reasons = [supports(program, node) for node in program.operations()]
    assert any(text is not None and text.startswith(reason) or reason in (text or "") for text in reasons)


COMPUTED = {
    "convolution": lambda x: F.conv2d(x, x[:, :, :3, :3]),
    "of one dimension": lambda x: F.conv1d(x[0, 0, :, None], x[0, 0, :1, None, :3]),
    "linear": lambda x: F.linear(x, x[0, 0]),
    "prelu": lambda x: F.prelu(x, x[0, :, 0, 0]),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_refused(name):
    with pytest.raises(UnsupportedError, match="its weight is computed"):
        Tvm().compile(program_of(Net(lambda self, x: COMPUTED[name](x)), (1, 4, 6, 6)))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)], ids=repr
)
def test_images_without_a_batch_are_refused(layer):
    with pytest.raises(UnsupportedError, match="images of 3 dimensions|the plane of an image"):
        Tvm().compile(program_of(layer, (4, 6, 6)))


def test_open_sizes_are_refused():
    program = program_of(nn.Conv2d(3, 4, 1), (1, 3, "8*h", "8*w"))
    assert {supports(program, node) for node in program.operations()} == {
        "its size is open: run `set-resolution` first"
    }


def test_import_is_the_same_twice():
    program = program_of(gated_unit(3), (1, 3, 4, 4), (1, 3, 4, 4))
    assert import_program(program).script() == import_program(program).script()
