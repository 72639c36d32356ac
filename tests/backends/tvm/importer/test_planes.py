"""Two-bit activations through the whole path: two packings, two convolutions, one sum."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import HOST, Net, compiled, inputs_of, program_of


def plane_net(groups: int) -> tuple[Program, Program]:
    """A layer of two-bit activations with its batch norm, trainable and lowered."""
    net = Net(
        lambda s, x: F.hardswish(s.norm(s.conv(F.relu(x)))),
        conv=nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False),
        norm=nn.BatchNorm2d(16),
    )
    torch.manual_seed(0)
    for tensor in (*net.parameters(), net.norm.running_mean):
        nn.init.normal_(tensor)
    text = "binarize{method=dorefa activations=2 exclude-first=false exclude-last=false}"
    program = parse_pipeline(text).run(program_of(net, (1, 16, 9, 8)))
    return program, parse_pipeline("lower").run(program)


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_computes_what_the_reference_computes(groups: int) -> None:
    trainable, lowered = plane_net(groups)
    inputs = inputs_of(lowered)
    expected = lowered.run(**inputs)["out0"]
    assert torch.equal(compiled(lowered).run(**inputs)["out0"], expected)
    with torch.no_grad():
        torch.testing.assert_close(trainable.run(**inputs)["out0"], expected, rtol=1e-5, atol=1e-5)


def test_the_second_convolution_adds_the_first_and_what_follows() -> None:
    _, lowered = plane_net(groups=1)
    rules = rules_used(lower(lowered, HOST))
    assert rules["fused_binary_convolution_3x3_16_16_add_mul_mul1_add1_hardswish"] == "binary convolution"
    assert sorted(rules.values()).count("packing") == 2


def test_sums_of_integers_are_scaled_exactly() -> None:
    def codes(_: Net, x: Tensor) -> Tensor:
        return torch.add(x.to(torch.int32), x.to(torch.int32), alpha=3).float()

    program = program_of(Net(codes), (1, 4, 5, 6))
    inputs = {"x": torch.arange(-60.0, 60.0).reshape(1, 4, 5, 6)}
    assert torch.equal(compiled(program).run(**inputs)["out0"], program.run(**inputs)["out0"])
