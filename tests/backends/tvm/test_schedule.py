"""Schedules: how loops are cut and tiles chosen, and that no choice of a target changes a result's bits."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import tvm
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tvm import te, tirx
from tvm.s_tir import Schedule

from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.freestanding.executable import emit_executable
from mattecompress.backends.tvm.schedule import RULE_ATTRIBUTE, rules_used, schedule_function
from mattecompress.backends.tvm.schedules.convolution import choose_tile
from mattecompress.backends.tvm.schedules.pieces import (
    condition_cuts,
    cut_loops,
    mark,
    serial_pieces,
    vector_pieces,
    widths,
)
from mattecompress.backends.tvm.schedules.relayout import pack
from mattecompress.backends.tvm.targets import TARGETS, find_target
from tests.backends.tvm.nets import HOST, Net, PairNet, inputs_of, largest_difference, program_of


@given(extent=st.integers(0, 2000), lanes=st.sampled_from([1, 2, 4, 8, 16]))
def test_widths_are_powers_of_two_that_add_up(extent, lanes):
    parts = widths(extent, lanes)
    assert sum(parts) == extent
    assert all(part & (part - 1) == 0 and part <= lanes for part in parts)
    assert parts == sorted(parts, reverse=True)


@given(
    extent=st.integers(1, 300),
    lanes=st.sampled_from([4, 8, 16]),
    cuts=st.lists(st.integers(-5, 320), max_size=4),
)
def test_pieces_cover_and_never_cross_a_cut(extent, lanes, cuts):
    for pieces in (vector_pieces(extent, lanes, cuts), serial_pieces(extent, cuts)):
        ends = [start + count * width for start, count, width in pieces]
        starts = [start for start, _, _ in pieces]
        assert starts[0] == 0
        assert ends[-1] == extent
        assert all(end == start for end, start in zip(ends[:-1], starts[1:], strict=True))
        assert not [cut for cut in cuts for s, e in zip(starts, ends, strict=True) if s < cut < e]
        assert all(a < b for a, b in pairwise(starts))


def test_cut_loops_make_whole_vectors_of_a_join():
    x, y = te.placeholder((7, 24), name="x"), te.placeholder((7, 17), name="y")
    joined = te.compute((7, 41), lambda i, c: tirx.if_then_else(c < 24, x[i, c], y[i, c - 24]), name="joined")
    schedule = Schedule(te.create_prim_func([x, y, joined]))
    block = schedule.get_sblock("joined")
    cuts = condition_cuts(schedule.get(block), 1)
    assert cuts == [24]
    mark(schedule, schedule.get_loops(block)[1], vector_pieces(41, 16, cuts))
    text = cut_loops(schedule.mod["main"]).script()
    assert [f"vectorized({width})" in text for width in (41, 24, 17, 16, 8)] == [
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "shape", [(72, 128, 40), (18, 32, 184), (1, 1, 960), (17, 30, 3), (288, 512, 59), (13, 7, 1)]
)
def test_tiles_divide_and_fit_the_registers(name, shape):
    target = find_target(name)
    tile = choose_tile(target, target.lanes(), *shape)
    sizes = (tile.rows, tile.columns, tile.channels)
    assert [extent % size for extent, size in zip(shape, sizes, strict=True)] == [0, 0, 0]
    vectors = len(widths(tile.channels, target.lanes()))
    assert vectors * tile.rows * tile.columns < target.vector_registers or sizes == (1, 1, 1)


def test_weights_are_packed_by_tile():
    import numpy as np

    weight = np.arange(2 * 3 * 5 * 8).reshape(2, 3, 5, 8)
    packed = pack(weight, 4)
    assert packed.shape == (2, 2, 3, 5, 4)
    assert (packed[1, 0, 2, 3] == weight[0, 2, 3, 4:]).all()


def test_what_no_rule_takes_is_left_serial_and_says_so():
    x = te.placeholder((4, 4), name="x")
    k = te.reduce_axis((0, 4))
    total = te.compute((4,), lambda i: te.sum(x[i, k], axis=k), name="total")
    scheduled = schedule_function(te.create_prim_func([x, total]), HOST).function
    assert scheduled.attrs[RULE_ATTRIBUTE] == "serial"


def test_a_scheduled_function_is_left_alone():
    x = te.placeholder((4,), name="x")
    function = te.create_prim_func([x, te.compute((4,), lambda i: x[i] + x[i], name="y")])
    function = function.with_attr("tirx.is_scheduled", True)
    assert schedule_function(function, HOST).function.same_as(function)


def small_matting_net() -> Net:
    """Every family of kernels: outputs are an image, its alpha, and a state."""

    def resized(x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

    def expression(self, image):
        x = (image - self.mean) / 0.3
        a = F.hardswish(self.a(x))
        b = torch.relu(self.b(a))
        gate = torch.sigmoid(self.c(F.adaptive_avg_pool2d(b, 1)))
        b = torch.tanh(self.d(b * gate) + a)
        e = torch.sigmoid(self.e(torch.cat([resized(F.avg_pool2d(b, 2)), b], 1)))
        slope, offset = self.f(e), self.g(e)
        fine = torch.cat([image, image.mean(1, keepdim=True)], 1)
        matte = resized(slope) * fine + resized(offset)
        return (matte[:, :3] + image).clamp(0, 1), matte[:, 3:].clamp(0, 1), b

    torch.manual_seed(0)
    net = Net(
        expression,
        a=nn.Conv2d(3, 20, 3, 2, 1),
        b=nn.Conv2d(20, 20, 5, padding=2, groups=20),
        c=nn.Conv2d(20, 20, 1),
        d=nn.Conv2d(20, 20, 1),
        e=nn.Conv2d(40, 12, 3, padding=1),
        f=nn.Conv2d(12, 4, 1),
        g=nn.Conv2d(12, 4, 1),
    )
    net.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
    return net


def small_matting_program():
    return program_of(small_matting_net(), (1, 3, 20, 44), outputs=3)


def test_small_matting_net_uses_every_rule():
    program = small_matting_program()
    rules = set(rules_used(lower(program, HOST)).values())
    assert rules == {"convolution", "winograd", "depthwise", "pooling", "frame", "injective"}
    assert largest_difference(program) < 1e-5


def test_planes_of_the_frame_are_one_kernel():
    names = rules_used(lower(small_matting_program(), HOST))
    assert [name for name, rule in names.items() if rule == "frame"] == ["frame"]
    assert not [name for name in names if "clamp" in name or "mul" in name.split("_")]


def growing_program(factor: float, align_corners: bool = False):
    """Planes that grow by a factor, as the frame computes them."""

    def resized(x):
        return torch.ops.matte.resize_bilinear(x, None, align_corners, [factor, factor])

    def expression(self, coefficients, image):
        matte = resized(coefficients * 3) * image + resized(coefficients.abs())
        return (matte[:, :3] + image[:, :3]).clamp(0, 1), matte[:, 3:].clamp(0, 1)

    shapes = (1, 4, 6, 10), (1, 4, int(6 * factor), int(10 * factor))
    return program_of(PairNet(expression), *shapes, outputs=2)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0, 8.0, 16.0])
def test_planes_of_the_frame_grow_by_any_factor(factor, align_corners):
    program = growing_program(factor, align_corners)
    assert "frame" in rules_used(lower(program, HOST)).values()
    assert largest_difference(program) == 0


@pytest.mark.parametrize("channels", [3, 24])
def test_what_a_convolution_gathers_is_resized_row_by_row(channels: int) -> None:
    net = Net(
        lambda s, x: s.a(F.interpolate(x, size=(32, 48), mode="bilinear", align_corners=False)),
        a=nn.Conv2d(channels, 16, 3, 2, 1),
    )
    module = lower(program_of(net, (1, channels, 16, 24)), HOST)
    (text,) = (
        str(function) for variable, function in module.functions.items() if "conv" in variable.name_hint
    )
    assert text.index("i_0") < text.index('sblock("blended_row")'), "inside the loop over rows of results"


def test_vector_width_does_not_change_a_bit():
    program = small_matting_program()
    inputs, results = inputs_of(program), []
    for bits, registers in ((128, 32), (128, 16), (256, 16), (512, 32)):
        target = replace(HOST, vector_bits=bits, vector_registers=registers)
        module = lower(program, target)
        results.append(compile_host(module, target).run(**inputs))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a76"])
@pytest.mark.parametrize(
    "made", [small_matting_program, lambda: growing_program(4.0)], ids=["small", "growing"]
)
def test_arm_gives_the_bits_of_this_machine(made, name, tmp_path):
    program = made()
    inputs, target = inputs_of(program), find_target(name)
    expected = compile_host(lower(program, HOST), HOST).run(**inputs)
    result = emit_executable(lower(program, target), program, target, tmp_path, "net").run(**inputs)
    assert all(torch.equal(result[key], expected[key]) for key in expected)


def test_lowered_main_is_calls_only():
    module = lower(small_matting_program(), HOST)
    calls = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    names = {str(call.op.name) for call in calls if isinstance(call, tvm.relax.Call)}
    assert names == {"relax.call_tir"}
