import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.spatial_mask import Rule, SpatialMask, SpatialMaskConfig
from mattecompress.passes.calibrate_mask import CalibrateMask
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.program import Program, StatePair
from mattecompress.running.feed import CalibrationError
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program


class Net(nn.Module):
    """The coarse alpha is the mean of the channels, moved by what was on the frame before."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.mask = SpatialMask(SpatialMaskConfig(rule, 0.01))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        alpha = x.mean(1, keepdim=True) - 0.5 + 0.1 * state
        return self.mask(alpha), alpha


def program_of(rule: Rule = "residual") -> Program:
    inputs = (("x", (1, 3, "2*h", "2*w")), ("si", (1, 1, "2*h", "2*w")))
    return capture(Net(rule).eval(), Signature(inputs, ("mask", "so"), (StatePair("si", "so"),)), "net")


def clips(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        F.interpolate(torch.rand(3, 3, 4, 5, generator=generator), size, mode="bicubic")
        for size in ((16, 20), (12, 24))
    ]


def coarse(frames: Tensor) -> list[Tensor]:
    found, state = [], torch.zeros_like(frames[:1, :1])
    for frame in frames.split(1):
        state = frame.mean(1, keepdim=True) - 0.5 + 0.1 * state
        found.append(state)
    return found


def config_of(program: Program) -> SpatialMaskConfig:
    (call,) = program.called_modules(SpatialMask)
    return program.module(call).config  # type: ignore[return-value]


def judged(rule: Rule, threshold: float) -> tuple[float, float]:
    """Density and entropy by their definitions."""
    masks = [
        (SpatialMask(SpatialMaskConfig(rule, threshold))(a) > 0, a > 0) for f in clips() for a in coarse(f)
    ]
    chosen = torch.cat([positive[mask] for mask, positive in masks])
    share = chosen.float().mean().item() if len(chosen) else 0.0
    entropy = sum(-p * math.log2(p) for p in (share, 1 - share) if p > 0)
    return torch.cat([mask.flatten() for mask, _ in masks]).float().mean().item(), entropy


@pytest.mark.parametrize("rule", ["residual", "xor", "support_residual"])
def test_no_other_threshold_is_better(rule: Rule) -> None:
    result = CalibrateMask(density=0.3)(program_of(rule), Context(clips=clips()))
    threshold = config_of(result.program).threshold
    density, entropy = judged(rule, threshold)
    assert result.modified and config_of(result.program).rule == rule
    assert 0 < density <= 0.3 and f"sets {density:.1%} of mask" in result.notes
    span = {"residual": 0.2, "xor": 0.5, "support_residual": 1.0}[rule]
    for other in torch.linspace(-span * (rule == "xor"), span, 41).tolist():
        share, value = judged(rule, other)
        assert share > 0.3 or value <= entropy + 0.02, f"{other:.3f} has {value:.3f} at {share:.2f}"


def test_of_equal_thresholds_the_largest_wins() -> None:
    """Alphas that are all above 0: the entropy is 0 with any threshold."""
    bright = [clip / 2 + 0.8 for clip in clips()]
    result = CalibrateMask()(program_of(), Context(clips=bright)).program
    assert f"{config_of(result).threshold:.4g}" in CalibrateMask()(program_of(), Context(clips=bright)).notes
    residuals = torch.cat([v.flatten() for clip in bright for v in _residuals(clip)])
    assert config_of(result).threshold == residuals.max().item()


def _residuals(clip: Tensor) -> list[Tensor]:
    from mattecompress.modules.spatial_mask import residual

    return [residual(alpha) for alpha in coarse(clip)]


def test_is_a_constant_of_the_text() -> None:
    result = CalibrateMask()(program_of(), Context(clips=clips())).program
    assert f"threshold={config_of(result).threshold}" in print_program(result)
    assert parse_program(print_program(result), result.state_dict()) == result
    assert not CalibrateMask()(result, Context(clips=clips())).modified


def test_refuses_what_gives_no_threshold() -> None:
    with pytest.raises(PreconditionError, match="run sparsify-decoder before"):
        CalibrateMask()(capture(nn.ReLU(), Signature((("x", (1, 3, 4, 4)),), ("y",)), "net"))
    with pytest.raises(PreconditionError, match="density=0: expected a share above 0"):
        CalibrateMask(density=0)(program_of())
    with pytest.raises(CalibrationError, match="add --calibration"):
        CalibrateMask()(program_of())
    with pytest.raises(CalibrationError, match="train the network first"):
        CalibrateMask()(program_of(), Context(clips=[torch.full((2, 3, 8, 8), 0.7)]))
