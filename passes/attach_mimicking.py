"""outputs  become  outputs, tap1 ... tapN, tap_mask and tap_coarse: the features F_s of an encoder and the mask M of

    L_LBM = sum_s || M_s * (F_s - F_s*) ||_2

with F_s* the same features of a float teacher, and the coarse matte whose alpha the mask is made of, before any clamp:
no gradient passes the mask, so that the coarse matte learns from a loss of its own. The losses are those of
`mattecompress.training.losses`; the training loop puts them on the taps that it finds.

Source: BiVM equation (20), whose symbols are lost in our copy of the paper: a reconstruction (R).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from mattecompress.analysis.scopes import handed_on
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

TAP = "tap"
MASK = "tap_mask"
COARSE = "tap_coarse"
MATTE_CHANNELS = 4
"""Foreground and alpha."""


@dataclass(frozen=True)
class AttachMimicking(Pass):
    """Let a program also return what localized mimicking compares; afterwards its taps are outputs.

    encoder: path of the module whose features are tapped.
    remove: take the taps off again, before the program is lowered.
    """

    encoder: str = "backbone"
    remove: bool = False
    name: ClassVar[str] = "attach-mimicking"

    def requires(self, program: Program) -> None:
        """The encoder is there, and nothing is lowered."""
        if not self.remove:
            expect(program.level is not Level.LOWERED, "the program is lowered: nothing can be learned")
            expect(handed_on(program, self.encoder), f"no operation comes from a module '{self.encoder}'")

    def ensures(self, program: Program) -> None:
        """There are taps, or there are none."""
        found = bool(tap_names(program))
        expect(found != self.remove, "taps are left" if self.remove else "no feature is tapped")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each feature, then the mask and the coarse matte where there are such."""
        taps = tap_names(program)
        if bool(taps) != self.remove:
            return None
        if self.remove:
            program.keep_outputs(
                *(name for name in program.output_names if name not in (*taps, MASK, COARSE))
            )
            return f"{len(taps)} taps removed"
        features = handed_on(program, self.encoder)
        for number, node in enumerate(features, start=1):
            program.add_output(f"{TAP}{number}", node)
        masks = program.called_modules(SpatialMask)[:1]
        for mask in masks:
            program.add_output(MASK, mask)
            for coarse in _matte_of(program, mask):
                program.add_output(COARSE, coarse)
        return f"{len(features)} features of {self.encoder}, {'under a mask' if masks else 'no mask'}"


def _matte_of(program: Program, mask: fx.Node) -> list[fx.Node]:
    """The image of foreground and alpha that the mask's alpha is the last channel of, if it is one."""
    alpha = mask.all_input_nodes[0]
    if alpha.target is not torch.ops.aten.slice.Tensor:
        return []
    (whole,) = alpha.all_input_nodes
    last = alpha.args[1:3] == (1, MATTE_CHANNELS - 1)
    return [whole] if last and program.facts(whole).shape[1] == MATTE_CHANNELS else []


def tap_names(program: Program) -> tuple[str, ...]:
    """Names of the outputs that are tapped features, shallow first."""
    numbered = (f"{TAP}{number}" for number in range(1, len(program.output_names) + 1))
    return tuple(name for name in numbered if name in program.output_names)
