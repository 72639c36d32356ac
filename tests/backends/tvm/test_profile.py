"""What the kernels of programs compute, and how long they take."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mattecompress import api
from mattecompress.analysis.cost import cost
from mattecompress.backends.tvm.compile import arrange, lower
from mattecompress.backends.tvm.importer.bands import cut_into_bands
from mattecompress.backends.tvm.importer.tokens import QUERIES
from mattecompress.backends.tvm.limits import ARITHMETICS, COPIES, copy_probe, limit_probe, sums_at_once
from mattecompress.backends.tvm.profile import Kernel, Limits, describe, profile
from mattecompress.inspection.times import attribute
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.preparation import lower as lower_program
from mattecompress.program import Program
from tests.backends.tvm.importer import test_bands, test_masks, test_thresholds
from tests.backends.tvm.nets import HOST, Net, program_of


def described(program: Program, densities: dict[str, float] | None = None) -> tuple[Kernel, ...]:
    """The kernels of a lowered program, none of whose operations is missing."""
    kernels = describe(arrange(program), lower(program, HOST), densities or {})
    computed = {node.name for kernel in kernels for node in kernel.nodes}
    assert {node.name for node in arrange(program).operations()} <= computed
    return kernels


def macs(program: Program) -> int:
    totals = cost(program).totals
    return totals.macs + totals.binary_macs


def test_kernels_share_out_a_programs_products(tiny: Program) -> None:
    program = lower_program(tiny)
    kernels = described(program)
    assert sum(kernel.products for kernel in kernels) == macs(program) > 0
    assert all((kernel.arithmetic is None) == (kernel.products == 0) for kernel in kernels)
    (order,) = (kernel for kernel in kernels if kernel.name == "to_nhwc")
    assert order.bytes == 2 * 3 * 12 * 16 * 4


def test_bits_handed_on_count_all_channels() -> None:
    program = test_thresholds.binary_net(lambda s, x: F.relu(x))
    kernels = described(program)
    assert any("bits" in kernel.name for kernel in kernels)
    assert sum(kernel.products for kernel in kernels) == macs(program)


def test_bands_count_what_they_compute_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    program = test_bands.tail_net(lambda s, x: s.d(F.relu(s.c(x))), "c", "d")
    cut = partial(cut_into_bands, most_bytes=test_bands.TENSOR // 2)
    monkeypatch.setitem(arrange.__globals__, "cut_into_bands", cut)
    kernels = described(program)
    assert macs(program) < sum(kernel.products for kernel in kernels) < 1.3 * macs(program)
    names = {name for nodes in attribute(program, kernels) for name in nodes}
    assert {node.name for node in program.operations()} == names


def test_attention_counts_once() -> None:
    net = Net(lambda s, x: F.scaled_dot_product_attention(x, x, x))
    program = program_of(net, (1, 2, QUERIES + 3, 8))
    kernels = described(program)
    assert sum("logits" in kernel.name for kernel in kernels) == 2
    assert sum(kernel.products for kernel in kernels) == pytest.approx(macs(program))


def test_masks_let_a_share_through() -> None:
    def expression(self, x, y):
        mask = F.interpolate(self.mask(x[:, :1]), y.shape[-2:], mode="bilinear")
        return mask * torch.tanh(self.close(x)) + torch.tanh(self.norm(self.everywhere(x)))

    program = test_masks.lowered(expression)
    (layer,) = program.find(torch.ops.matte.masked_binary_conv2d.default)
    whole, some = (described(program, shares) for shares in ({}, {layer.name: 0.25}))
    for before, after in zip(whole, some, strict=True):
        share = 0.25 if "masked" in before.name else 1
        assert after.products == pytest.approx(before.products * share, rel=0.01)
        assert (after.bytes < before.bytes) == (share < 1)


def test_the_limit_is_the_longer_of_two_times() -> None:
    limits = Limits({"float32": 1e12, "binary": 1e13}, {1 << 18: 1e10, 1 << 20: 2e10, 1 << 22: 5e9})
    assert limits.of(Kernel("a", (), 10**9, "float32", 10)) == (pytest.approx(1.0), "arithmetic")
    assert limits.of(Kernel("a", (), 10**9, "binary", 10)) == (pytest.approx(0.1), "arithmetic")
    assert limits.of(Kernel("a", (), 10**9, "float16", 10)) == (pytest.approx(1.0), "arithmetic")
    assert limits.of(Kernel("a", (), 0, None, 10**7)) == (pytest.approx(2.0), "memory")
    small, bound = limits.of(Kernel("a", (), 0, None, 2 * 10**5))
    assert (small, bound) == (pytest.approx(0.01), "memory"), "a small copy is no slower than a large one"


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_probes_of_arithmetics(arithmetic) -> None:
    work, products = limit_probe(arithmetic)
    work()
    assert products > 10**7


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("rest", [1, 3, 5])
def test_no_sum_of_a_probe_waits_for_the_one_before(registers: int, rest: int) -> None:
    """Two multiply-adds begin in a cycle and take four: eight sums keep them busy."""
    pixels, vectors = sums_at_once(registers, rest)
    assert pixels * vectors >= 8
    assert pixels * vectors + vectors + rest <= registers


def test_probes_of_memory_move_what_they_say() -> None:
    for size, repeats in COPIES.items():
        work, moved = copy_probe(size, repeats)
        work()
        assert moved == size * repeats >= 1 << 22


def test_times_every_call(tiny: Program) -> None:
    found = profile(lower_program(tiny), torch.rand(2, 3, 12, 16), runs=2)
    assert len(found.kernels) == len(found.kernel_ms) > 3
    assert min(*found.kernel_ms, found.frame_ms) > 0
    assert found.limits.products.keys() == set(ARITHMETICS) and found.limits.bytes.keys() == COPIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["", "mse{weights=8 activations=8}", "rvm-react", "bivm"])
def test_whole_networks(pipeline: str) -> None:
    """Every kernel of a program leads back to it, and every layer of it to a kernel."""
    captured = api.capture("rvm-mobilenetv3", size=(96, 160))
    clip = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    program = parse_pipeline(pipeline).run(captured, Context(clips=[clip])) if pipeline else captured
    kernels = described(lower_program(program))
    assert sum(kernel.products for kernel in kernels) == pytest.approx(macs(lower_program(program)))
    nodes = attribute(program, kernels)
    assert all(nodes)
    layers = {each.name for each in cost(program).nodes if each.macs + each.binary_macs}
    assert layers <= {name for names in nodes for name in names}
