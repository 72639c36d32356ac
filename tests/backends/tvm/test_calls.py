"""Which nodes the calls of `main` compute; `test_profile` has those of whole networks."""

import pytest
import torch
from torch import nn

from mattecompress.backends.tvm.calls import kernel_calls, nodes_of
from mattecompress.backends.tvm.compile import arrange, lower
from mattecompress.preparation import lower as lower_program
from mattecompress.program import Program
from tests.backends.tvm.importer.test_thresholds import binary_net
from tests.backends.tvm.nets import HOST, Net, program_of


def called(program: Program) -> list[tuple[str, tuple[str, ...]]]:
    module = lower(program, HOST)
    names = [call.args[0].name_hint for call in kernel_calls(module["main"])]
    return list(zip(names, nodes_of(module), strict=True))


def test_a_fused_kernel_has_the_nodes_of_its_parts(tiny: Program) -> None:
    found = dict(called(lower_program(tiny)))
    (stem,) = (nodes for name, nodes in found.items() if "3x3_3_8" in name)
    assert stem == ("conv2d_default", "hardswish_")
    assert found["to_nhwc"] == ("src",)


def test_equal_kernels_stay_one_and_their_calls_apart() -> None:
    layers = {name: nn.Conv2d(8, 8, 3, padding=1) for name in "abc"}
    program = program_of(Net(lambda s, x: s.c(torch.relu(s.b(torch.relu(s.a(x))))), **layers), (1, 8, 16, 16))
    found = [(name, nodes) for name, nodes in called(program) if "relu" in name]
    assert [nodes for _, nodes in found] == [("conv2d", "relu"), ("conv2d_1", "relu_1")]
    assert len({name for name, _ in found}) == 1


def test_values_computed_twice_are_told_apart() -> None:
    """Two kernels of the same operands are the same value; each is in a group of its own."""
    layers = {name: nn.Conv2d(8, 8, 1) for name in "ab"}
    program = program_of(
        Net(lambda s, x: torch.tanh(s.a(x.sigmoid())) + torch.relu(s.b(x.sigmoid())), **layers),
        (1, 8, 16, 16),
    )
    names = [name for _, nodes in called(program) for name in nodes]
    assert {"sigmoid", "sigmoid_1"} <= set(names)


@pytest.mark.parametrize("middle", [lambda s, x: x, lambda s, x: torch.tanh(x)])
def test_layers_that_hand_on_bits_know_what_they_were(middle) -> None:
    program = binary_net(middle)
    known = {node.name for node in arrange(program).operations()}
    assert {name for _, nodes in called(program) for name in nodes} <= known | {"x"}
    layers = [node for node in arrange(program).operations() if "conv2d" in node.name]
    assert all(node.meta["facts"].made.origins for node in layers if "bits" in node.name)
