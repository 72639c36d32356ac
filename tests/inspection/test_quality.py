import math

import pytest
import torch
from torch import nn

from mattecompress.inspection.quality import affine_numbers, find_uncalibrated, region_ratios
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.reconstruction.affine import absorb, layers_of
from tests.reconstruction.nets import FedBack, SideBySide, captured, clips_for

PREPARE = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=4 activations=6}"


@pytest.fixture(scope="module")
def network() -> Program:
    return captured(FedBack)


@pytest.fixture(scope="module")
def quantized(network: Program) -> Program:
    return parse_pipeline(PREPARE).run(network, Context(clips=clips_for(FedBack, frames=3)))


def test_ratio_of_each_region(network: Program, quantized: Program) -> None:
    clips = clips_for(FedBack, frames=2)
    ratios = region_ratios(quantized, network, clips)
    assert ratios and all(ratio is not None and math.isfinite(ratio) for ratio in ratios.values())
    assert set(region_ratios(quantized, quantized, clips).values()) == {None}


@pytest.mark.parametrize(
    ("kind", "names"),
    [(FedBack, ["first", "twice", "last"]), (SideBySide, ["part", "part.weight_quantizer_1"])],
)
def test_numbers_that_were_absorbed_are_found(kind: type[nn.Module], names: list[str]) -> None:
    quantized = parse_pipeline(PREPARE).run(captured(kind), Context(clips=clips_for(kind, frames=3)))
    after = quantized.clone()
    for number, layer in enumerate(layers_of(after)):
        absorb(after, layer, torch.tensor(1.0 + number / 8), torch.tensor(-0.25 * number), "output")
    after.graph_module.recompile()
    found = affine_numbers(quantized, after)
    assert list(found.gamma) == names
    assert list(found.gamma.values()) == pytest.approx([1 + n / 8 for n in range(len(names))])
    assert list(found.beta.values()) == pytest.approx([-0.25 * n for n in range(len(names))], abs=1e-6)


def test_what_was_calibrated_is_found_by_its_history(network: Program, quantized: Program) -> None:
    context = Context(clips=clips_for(FedBack, frames=4), teacher=network)
    calibrated = parse_pipeline("calibrate-affine{epochs=1 rate=0.01}").run(quantized, context)
    assert find_uncalibrated(calibrated, [network, quantized]) is quantized
    assert find_uncalibrated(calibrated, [network]) is None
    assert find_uncalibrated(quantized, [network, quantized]) is None
