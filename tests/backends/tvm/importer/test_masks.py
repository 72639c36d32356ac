"""What masked sums become: a kernel under the mask, and one everywhere that adds what the first computed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import HOST, PairNet, compiled, inputs_of, program_of


def binary(inputs: int, kernel: int) -> BinaryConv2d:
    shape = ((kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
    layer = BinaryConv2d(BinaryConvConfig(inputs, 16, *shape, method="react"))
    assert layer.activation_bias is not None
    nn.init.normal_(layer.activation_bias, 0, 0.1)
    return layer


def lowered(expression, channels: int = 8) -> Program:
    """An expression of two images, a mask, and layers `close` and `everywhere` over `channels`."""
    torch.manual_seed(0)
    layers = {"mask": SpatialMask(SpatialMaskConfig()), "norm": nn.BatchNorm2d(16)}
    net = PairNet(expression, close=binary(channels, 3), everywhere=binary(channels, 1), **layers)
    return parse_pipeline("lower{strict=true}").run(program_of(net, (1, 8, 9, 12), (1, 16, 9, 12)))


def kernels(program: Program) -> list[str]:
    rules = rules_used(lower(program, HOST))
    assert "serial" not in rules.values()
    return sorted(rules)


def assert_right(program: Program) -> None:
    inputs = inputs_of(program)
    expected, found = program.run(**inputs), compiled(program).run(**inputs)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_a_scatter_joins_what_computes_its_image() -> None:
    def expression(self, x, y):
        mask = F.interpolate(self.mask(x[:, :1]), y.shape[-2:], mode="bilinear")
        return mask * torch.tanh(self.close(x)) + torch.tanh(self.norm(self.everywhere(x)))

    program = lowered(expression)
    assert_right(program)
    made = [name for name in kernels(program) if "scatter" in name or "gather_tiles" in name]
    assert len(made) == 1 and "binary_convolution_1x1_8_16" in made[0]
    (close,) = (name for name in kernels(program) if "masked" in name)
    assert "tanh" in close and "mul" in close


@pytest.mark.parametrize("kind", ["an input", "read elsewhere", "joined"])
def test_a_scatter_that_cannot_join_stands_alone(kind: str) -> None:
    def expression(self, x: Tensor, y: Tensor) -> Tensor:
        close, base = self.mask(x[:, :1]) * self.close(x), self.everywhere(x)
        if kind == "an input":
            return close + y
        if kind == "joined":
            return close + torch.cat([base[:, :8], y[:, 8:]], dim=1)
        return (close + base).relu() * base

    program = lowered(expression)
    assert_right(program)
    assert sum("scatter" in name for name in kernels(program)) == 1


@pytest.mark.parametrize("channels", [24, 19, 10])
def test_packings_with_other_thresholds_compute_a_join_once(channels: int) -> None:
    """The joined image is not written down."""

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        wide = F.interpolate(x, (9, 12), mode="bilinear")
        both = torch.cat([wide, y[:, : channels - wide.shape[1]]], dim=1)
        return self.close(both) + self.everywhere(both)

    program = lowered(joined, channels)
    assert_right(program)
    assert sum("pack" in name for name in kernels(program)) == 1
    assert not [name for name in kernels(program) if "join" in name or "resize" in name]


def test_packings_with_other_thresholds_read_memory_once() -> None:
    def read_often(self, x: Tensor, y: Tensor) -> Tensor:
        return self.close(x) + self.everywhere(x) + y

    program = lowered(read_often)
    assert_right(program)
    assert sum("pack" in name for name in kernels(program)) == 1


def test_packings_at_once_are_the_same_bits_on_any_vectors() -> None:
    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([F.interpolate(x, (9, 12), mode="bilinear"), y[:, :11]], dim=1)
        return self.close(both) + self.everywhere(both)

    program = lowered(joined, 19)
    inputs = inputs_of(program)
    expected = program.run(**inputs)
    for bits in (128, 256, 512):
        target = replace(HOST, vector_bits=bits)
        found = compile_host(lower(program, target), target).run(**inputs)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
