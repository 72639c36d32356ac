"""Programs in float16 on ARM: near the reference, which sums in float32 and rounds each operation once."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.targets import TARGETS, TargetError, find_target
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import PairNet, inputs_of, program_of

pytest.importorskip("ziglang")
from mattecompress.backends.tvm.backend import Freestanding
from mattecompress.backends.tvm.freestanding.objects import compile_kernels, lower_to_loops

ARM = find_target("cortex-a76")
LAST_PLACE = 2.0**-10


def half(module: nn.Module, *shapes: tuple[int, ...], outputs: int = 1) -> Program:
    torch.manual_seed(0)
    return parse_pipeline("cast-half").run(program_of(module, *shapes, outputs=outputs))


LAYERS = {
    "stem": (nn.Conv2d(3, 16, 3, 2, 1), 16),
    "direct": (nn.Conv2d(13, 20, 5, padding=2), 24),
    "strided": (nn.Conv2d(13, 24, 3, 2, 1, dilation=2), 24),
    "pointwise": (nn.Conv2d(72, 40, 1), 24),
    "narrow": (nn.Conv2d(72, 4, 1, bias=False), 24),
    "grouped": (nn.Conv2d(24, 16, 3, padding=1, groups=2), 24),
    "winograd": (nn.Conv2d(35, 24, 3, padding=1), 64),
    "deep": (nn.Conv2d(200, 40, 3, padding=1), 128),
    "depthwise": (nn.Conv2d(40, 40, 5, 2, 2, groups=40), 8),
}
"""Layers, and how many last places of the largest output they may be off: sums in float16 round at every step."""


def test_convolutions() -> None:
    module = PairNet(
        lambda self, x, y: (
            [
                getattr(self, name)(x[:, : layer.weight.shape[1] * layer.groups])
                for name, (layer, _) in LAYERS.items()
            ]
            + [y]
        ),
        **{name: layer for name, (layer, _) in LAYERS.items()},
    )
    program = half(module, (1, 200, 12, 16), (1, 1, 2, 2), outputs=len(LAYERS) + 1)
    inputs = inputs_of(program)
    results = Freestanding.of(program, ARM.name).run(**inputs)
    expected = program.run(**inputs)
    for (name, (_, places)), output in zip(LAYERS.items(), program.output_names, strict=False):
        limit = places * LAST_PLACE * expected[output].abs().max()
        assert (results[output] - expected[output]).abs().max() <= limit, name


OPERATIONS = {
    "add": lambda x, y: x + y,
    "relu": lambda x, y: F.relu(x),
    "clamp": lambda x, y: (x + y).clamp(0, 1),
    "prelu": lambda x, y: F.leaky_relu(x, 0.25),
    "one minus": lambda x, y: 1 - x,
    "gate": lambda x, y: x * y.mean((2, 3), keepdim=True),
    "resize": lambda x, y: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "shrink": lambda x, y: F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False),
    "average": lambda x, y: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
    "maximum": lambda x, y: F.max_pool2d(x, 3, 2, 1),
    "plane": lambda x, y: F.adaptive_avg_pool2d(100 * x, 1),
    "join": lambda x, y: torch.cat([x[:, 3:], y], 1),
    "hardswish": lambda x, y: F.hardswish(4 * x),
    "hardsigmoid": lambda x, y: F.hardsigmoid(4 * x),
    "sigmoid": lambda x, y: torch.sigmoid(6 * x),
    "tanh": lambda x, y: torch.tanh(2 * x),
    "quotient": lambda x, y: x / (y.abs() + 1e-5),
}


def test_operations_differ_in_two_last_places() -> None:
    module = PairNet(lambda self, x, y: [function(x, y) for function in OPERATIONS.values()])
    program = half(module, (1, 11, 9, 14), (1, 11, 9, 14), outputs=len(OPERATIONS))
    inputs = inputs_of(program)
    results = Freestanding.of(program, ARM.name).run(**inputs)
    expected = program.run(**inputs)
    for name, output in zip(OPERATIONS, program.output_names, strict=True):
        limit = 2 * LAST_PLACE * expected[output].abs().clamp(min=0.5)
        assert ((results[output] - expected[output]).abs() <= limit).all(), name


def test_inner_loop_multiplies_eight_elements_and_spills_none() -> None:
    """Of a pointwise convolution: a vector of weights for every tile of pixels, an element of pixels for each."""
    module = lower(half(nn.Conv2d(96, 32, 1), (1, 96, 12, 16)), ARM)
    (name,) = (str(v.name_hint) for v in module.functions if "convolution" in str(v.name_hint))
    loops = lower_to_loops(module, [name], ARM)
    assembly = compile_kernels(loops, ARM, "k").module.inspect_source("asm")
    blocks = [block.split("\tb.ne\t")[0] for block in assembly.split("\n.LBB")]
    inner = max(blocks, key=lambda block: block.count("\tfmla\t"))
    products = inner.count("\tfmla\t")
    assert products == len(re.findall(r"\tfmla\tv\d+\.8h, v\d+\.8h, v\d+\.h\[", inner)) >= 64
    assert inner.count("\tldr\t") + inner.count("\tldp\t") < products / 3
    assert inner.count("\tstr\t") + inner.count("\tstp\t") == 0


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.half])
def test_targets_without_float16_say_so(target: str) -> None:
    program = half(nn.Conv2d(3, 4, 1), (1, 3, 4, 4))
    with pytest.raises(TargetError, match=f"{target} does not: build it for .*cortex-a76"):
        lower(program, find_target(target))
