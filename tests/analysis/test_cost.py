import math

import pytest
import torch
from torch import nn

from mattecompress.analysis.cost import OpenSizeError, convolution_macs, cost
from mattecompress.capturing.tracing import capture
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from tests.passes.attention_nets import mixer

matte = torch.ops.matte


def _truncated(value: float, digits: int) -> float:
    return math.floor(value * 10**digits) / 10**digits


@pytest.mark.parametrize(
    ("size", "macs", "flops", "published"),
    [((288, 512), 4.4959, 4.5723, 4.57), ((512, 512), 7.9914, 8.1272, 8.12)],
)
def test_float_rvm_costs_what_the_paper_says(
    rvm_open: Program, size: tuple[int, int], macs: float, flops: float, published: float
) -> None:
    totals = cost(parse_pipeline(f"set-resolution{{height={size[0]} width={size[1]}}}").run(rvm_open)).totals
    assert totals.parameters == 3_747_808
    assert totals.model_parameters == 3_748_633
    assert round(totals.macs / 1e9, 4) == macs
    assert round(totals.paper_gflops, 4) == flops
    assert _truncated(totals.paper_gflops, 2) == published
    assert round(totals.paper_size_mib, 2) == 14.30


@pytest.mark.parametrize(
    ("pipeline", "size", "flops"),
    [("rvm-bnn", 0.5707, 0.5060), ("rvm-react", 0.6440, 0.5060)],
)
def test_one_bit_rvm_costs_what_the_paper_says(
    rvm_open: Program, pipeline: str, size: float, flops: float
) -> None:
    program = parse_pipeline(f"set-resolution{{height=288 width=512}},{pipeline}").run(rvm_open)
    totals = cost(program).totals
    assert round(totals.paper_size_mib, 4) == size
    assert round(totals.paper_gflops, 4) == flops
    assert round(totals.binary_macs / 1e6, 2) == 4130.79


def test_regions_and_nodes_add_up(rvm: Program) -> None:
    counted = cost(parse_pipeline("partition-blocks").run(rvm))
    assert sum(row["macs"] for row in counted.regions) == counted.totals.macs
    assert sum(node.macs for node in counted.nodes) == counted.totals.macs


def test_open_sizes_are_refused(rvm_open: Program) -> None:
    with pytest.raises(OpenSizeError, match="set-resolution"):
        cost(rvm_open)


class Masked(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        tiles = matte.mask_tiles(x[:, :1], 4)
        floats = matte.masked_conv2d(x, weight, None, tiles, 4, [1, 1], [1, 1], [1, 1], 1)
        bits = matte.pack_signs(x, None, 1, 8)
        return floats + matte.masked_binary_conv2d(
            bits, signs, tiles, 4, 5, [1, 1], [1, 1], [1, 1], 1, "signs", 0
        )


def test_masked_convolutions_cost_what_dense_ones_do() -> None:
    shapes = (("x", (1, 5, 6, 8)), ("weight", (7, 5, 3, 3)), ("signs", (7, 3, 3, 1)))
    program = capture(Masked(), Signature(shapes, ("y",)), "masked")
    counts = [convolution_macs(program, node) for node in program.operations()]
    assert [count for count in counts if count] == [6 * 8 * 7 * 45] * 2


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding="same"), (1, 3, 6, 5), 6 * 5 * 8 * 27),
        (nn.ConvTranspose2d(3, 8, 2, 2), (1, 3, 6, 5), 6 * 5 * 3 * 8 * 4),
        (nn.ConvTranspose2d(4, 8, 3, 1, groups=2), (1, 4, 6, 5), 6 * 5 * 4 * 4 * 9),
        (nn.Conv1d(3, 8, 3, padding=1), (1, 3, 6), 6 * 8 * 9),
    ],
)
def test_layers_cost_what_their_products_do(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert cost(capture(layer, Signature((("x", shape),), ("y",)), "layer")).totals.macs == macs


class EinsteinSum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.einsum(self.equation, q, k)


@pytest.mark.parametrize("equation", ["bid,bjd->bij", "b i d, b j d -> b i j", "...id,...jd->...ij"])
def test_einstein_sums_are_counted_however_they_are_written(equation: str) -> None:
    signature = Signature((("q", (2, 3, 4)), ("k", (2, 5, 4))), ("y",))
    assert cost(capture(EinsteinSum(equation), signature, "sum")).totals.macs == 2 * 3 * 5 * 4


@pytest.mark.parametrize(
    ("pipeline", "macs"),
    [
        ("canonicalize", 12 * 8 * (24 + 8) + 12 * 12 * 8 * 2 + 12 * (3 + 4) * 8),
        ("rewrite-attention", 12 * 8 * (24 + 8) + 12 * 12 * 8 * 2 + 12 * (3 + 4) * 8),
        (
            "route-tokens{limit=4}",
            4 * (8 * 24 + 8 * 8 + 2 * 4 * 8) + 12 * (2 * 8 * 16 + 16 * 25) + 12 * (64 + 32 + 8 + 4),
        ),
    ],
)
def test_products_are_counted(pipeline: str, macs: int) -> None:
    """Layers, the two products of attention, relative positions; and routed, what chosen tokens cost at most."""
    assert cost(parse_pipeline(pipeline).run(mixer(positioned=True, batch=1))).totals.macs == macs
