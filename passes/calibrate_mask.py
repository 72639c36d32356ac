"""tau = argmax H(p),  H(p) = -p log2 p - (1 - p) log2(1 - p),  p = share of F > 0 where the mask of tau is set

with F the coarse alpha before any clamp. Candidates are quantiles of what the mask's rule compares with its threshold,
over calibration frames; those whose masks are denser than a limit are left out, and of equal ones the largest wins.

Source: BiVM equation (16), whose symbols are lost in our copy of the paper: a reconstruction (R). The limit is ours. The
published costs imply that 0.28 to 0.33 of the operations under a mask are computed, which is a sparser mask than one that
marks as much: resized to larger pictures it lets more through (docs/mask-time.md).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig, compared
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.running.feed import CalibrationError, Feed
from mattecompress.running.watching import watch


@dataclass(frozen=True)
class CalibrateMask(Pass):
    """Give each spatial mask the threshold of largest entropy; afterwards it is a constant that clips have chosen.

    density: largest share of positions that a mask may set on the clips.
    candidates: thresholds to try, quantiles at equal steps.
    """

    density: float = 0.35
    candidates: int = 256
    name: ClassVar[str] = "calibrate-mask"

    def requires(self, program: Program) -> None:
        """There is a mask, and the options leave something to choose from."""
        expect(0 < self.density <= 1, f"density={self.density:g}: expected a share above 0, at most 1")
        expect(self.candidates > 0, f"candidates={self.candidates}: expected 1 or more")
        expect(program.called_modules(SpatialMask), "there is no spatial mask: run sparsify-decoder before")

    def apply(self, program: Program, context: Context) -> str | None:
        """One threshold a mask, from what it sees on all frames.

        Raises:
            CalibrationError: no clips, clips that do not fit, or a mask that no threshold makes sparse enough.
        """
        found, changed = [], False
        for call in program.called_modules(SpatialMask):
            config = program.module(call).config
            assert isinstance(config, SpatialMaskConfig)
            coarse = _values(program, call.all_input_nodes[0].name, context)
            chosen, share = self._search(config, coarse)
            changed |= chosen != config
            program.add_module(str(call.target), SpatialMask(chosen).train(program.graph_module.training))
            found.append(f"threshold {chosen.threshold:.4g} sets {share:.1%} of {call.target}")
        return ", ".join(found) if changed else None

    def _search(self, config: SpatialMaskConfig, coarse: list[Tensor]) -> tuple[SpatialMaskConfig, float]:
        """The configuration of largest entropy, and the share of positions that it sets."""
        steps = torch.linspace(0, 1, self.candidates)
        seen = torch.cat([compared(value, config.rule).flatten() for value in coarse])
        best, largest, share = None, -1.0, 0.0
        for threshold in torch.quantile(seen, steps, interpolation="higher").unique().tolist():
            candidate = replace(config, threshold=threshold)
            density, entropy = _measure(candidate, coarse)
            if density <= self.density and entropy >= largest:
                best, largest, share = candidate, entropy, density
        if best is None:
            raise CalibrationError(
                f"no threshold of {config.rule} sets at most {self.density:.0%} of the mask: "
                "train the network first, or allow a larger density"
            )
        return best, share


def _values(program: Program, name: str, context: Context) -> list[Tensor]:
    """What a node yields on each frame of the clips."""
    shown, values = program.clone(), list[Tensor]()
    shown.graph_module.eval()

    def look(node: fx.Node, value: Tensor) -> None:
        if node.name == name:
            values.append(value)

    watch(Feed(shown, context.clips), look, context.progress)
    return values


def _measure(config: SpatialMaskConfig, coarse: list[Tensor]) -> tuple[float, float]:
    """The share of positions that the mask sets, and the entropy of the sign of those."""
    mask = SpatialMask(config)
    chosen = [value[mask(value) > 0] > 0 for value in coarse]
    count = sum(part.numel() for part in chosen)
    positive = sum(int(part.sum()) for part in chosen)
    share = torch.tensor([positive, count - positive], dtype=torch.float64) / max(count, 1)
    entropy = -torch.special.xlogy(share, share).sum().item()
    return count / sum(value.numel() for value in coarse), entropy
