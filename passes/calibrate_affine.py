"""min over gamma, beta of each layer and all activation scales s of  mean (a - a*)^2 + w * mean |x_t - warp(x_{t-1})|

end to end over short sequences, states and gradients carried through time; roundings and zero points stay. a* is the
true alpha, or the float program's where it is unknown; x is a, or its error a - a*. The two forms of gamma and beta, and
how they are absorbed, are those of `mattecompress.reconstruction.affine`: the codes of the weights stay what they were.

Sources: PTQ4VM section 4.2 (GAC) and 4.3 (OFA), and its published code for the output form, the rates and epochs.
Departures: every quantized convolution gets the two numbers, not only those that had a batch norm; a scale is learned
in steps that are a share of it, not all in steps of one size; flow=dis stands in for RAFT; flow-of=error asks that the
error stays where the flow takes it, since an alpha that is right changes along it too; of all epochs the one of
least loss over the calibration clips is kept, and nothing where that is no better than what was there before on
frames that change by a millionth, which moves the loss by up to a quarter in 8 bits, or where more sequences lose
than gain.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mattecompress.interface import alpha_name
from mattecompress.memory import freed_memory_kept
from mattecompress.models.raft import load_raft
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.optical_flow import dis_flow, raft_flow
from mattecompress.options import OptionError
from mattecompress.passes.reconstruct_blocks import own_weights
from mattecompress.pipeline import Context, Pass, Unchanged, expect
from mattecompress.program import Program
from mattecompress.reconstruction.affine import ApplyTo, Numbers, layers_of
from mattecompress.reconstruction.checkpoints import Checkpoints, identity_of
from mattecompress.reconstruction.end_to_end import EndToEnd, Learned, Schedule
from mattecompress.reconstruction.unrolled import FlowTerm, Piece, unrolled_alpha
from mattecompress.running.feed import CalibrationError, Feed, check_finite


@dataclass(frozen=True)
class CalibrateAffine(Pass):
    """Learn two numbers for each quantized layer and all scales of activations end to end; afterwards all is absorbed.

    apply_to: output or weights.
    numbers: two for each layer, or for each of its channels, which asks for apply-to=output and a scale per channel.
    target: truth, the true alpha of clips where it is known, or float, the float program's on all of them. The latter
        asks for nothing that the float network cannot do: where its own mattes are far from the truth, that is better.
    flow: none, or what finds motion for the term that follows it: dis, which needs the extra `flow`, or raft.
    flow_checkpoint: weights of RAFT or RAFT-small, under the authors' names, for flow=raft.
    flow_weight: of that term.
    flow_of: what may not change along the flow: alpha, as in the paper, or error, alpha's against what is aimed at.
    epochs: over all sequences.
    batch: sequences in each step.
    frames: of each sequence; clips are cut into such.
    rate: Adam's, which falls to 0 along a cosine; a scale's is that share of the scale.
    """

    apply_to: ApplyTo = "output"
    numbers: Numbers = "layer"
    target: Literal["truth", "float"] = "truth"
    flow: Literal["none", "dis", "raft"] = "none"
    flow_checkpoint: str | None = None
    flow_weight: float = 0.05
    flow_of: Literal["alpha", "error"] = "alpha"
    epochs: int = 55
    batch: int = 4
    frames: int = 4
    rate: float = 1e-4
    name: ClassVar[str] = "calibrate-affine"

    def __post_init__(self) -> None:
        for what, value in (("epochs", self.epochs), ("batch", self.batch), ("frames", self.frames)):
            if value < 1:
                raise OptionError(f"{what}={value}: expected at least 1")
        if self.numbers == "channel" and self.apply_to == "weights":
            raise OptionError("numbers=channel acts on outputs: use apply-to=output")
        if (self.flow == "raft") != (self.flow_checkpoint is not None):
            raise OptionError(
                "flow=raft and flow-checkpoint=FILE, RAFT's weights, need each other: give both or neither"
            )
        if self.flow_checkpoint is not None and not Path(self.flow_checkpoint).is_file():
            raise OptionError(f"flow-checkpoint={self.flow_checkpoint}: no such file; give RAFT's weights")
        if not (0 < self.rate < inf and 0 <= self.flow_weight < inf):
            raise OptionError("rate has to be above 0, flow-weight at least 0, and both finite")

    def requires(self, program: Program) -> None:
        """The program has quantized convolutions, and scales to take the numbers."""
        layers = layers_of(program)
        expect(layers, "no convolution is quantized: run quantize before calibrate-affine")
        whole = [
            layer.path for layer in layers if program.module(layer.call, FakeQuantize).config.channels is None
        ]
        expect(
            self.numbers == "layer" or not whole,
            f"{', '.join(whole)} has one scale for all channels: use numbers=layer, or quantize with weight-scales=channel",
        )

    def apply(self, program: Program, context: Context) -> str | Unchanged | None:
        """Learn on a copy, and absorb what was learned if it helped."""
        pieces = self._pieces(program, context)
        wanted = [part for piece in pieces for part in (piece.alpha, piece.flow) if part is not None]
        identity = identity_of(str(self), context.seed, program, Feed(program, context.clips), wanted)
        own_weights(program)
        learned = Learned(program, self.apply_to, self.numbers)
        term = FlowTerm(self.flow_weight, self.flow_of)
        schedule = Schedule(self.epochs, self.batch, self.rate, term, context.seed)
        work = EndToEnd(learned, pieces, schedule, Checkpoints(context.folder, self.name, identity))
        with freed_memory_kept():
            outcome = work.learn(context.progress)
        if not outcome.certain:
            return Unchanged(f"no epoch is better beyond chance, loss x 1000: {outcome}")
        learned.absorb(program)
        return (
            f"{len(learned.numbers)} layers and {len(learned.scales)} activation scales over {len(pieces)} sequences, "
            f"loss x 1000: {outcome}"
        )

    @torch.no_grad()
    def _pieces(self, program: Program, context: Context) -> list[Piece]:
        """Clips cut into sequences, the last of a clip maybe shorter."""
        feed, alphas = Feed(program, context.clips), context.alphas or [None] * len(context.clips)
        self._check(program, feed, alphas)
        find_flow = self._flow_finder()
        pieces = []
        for clip, start in ((c, s) for c in range(len(feed)) for s in range(0, feed.length(c), self.frames)):
            places = range(start, min(start + self.frames, feed.length(clip)))
            frames = [feed.frame(clip, place) for place in places]
            true = alphas[clip] if self.target == "truth" else None
            if true is None:
                true_piece = self._teacher_alpha(context, frames, clip)
            else:
                true_piece = true[start : start + len(frames)]
            flow = find_flow(_pictures(program, frames)) if find_flow else None
            pieces.append(Piece(frames, feed.zeros(clip), true_piece, flow))
        return pieces

    def _check(self, program: Program, feed: Feed, alphas: Sequence[Tensor | None]) -> None:
        if len(alphas) != len(feed):
            raise CalibrationError(
                f"{len(feed)} clips have {len(alphas)} alphas: give one, or none, for each"
            )
        longest = min(self.frames, max(feed.length(clip) for clip in range(len(feed))))
        if longest < 2 and (program.states or self.flow != "none"):
            what = "motion" if self.flow != "none" else "states"
            raise CalibrationError(
                f"every sequence has one frame, which says nothing of {what} over time: give clips of more frames"
            )
        output = program.outputs[alpha_name(program)]
        for clip, alpha in enumerate(alphas):
            if alpha is None:
                continue
            expected = [feed.length(clip), *feed.shape(output, clip)[1:]]
            if list(alpha.shape) != expected:
                raise CalibrationError(
                    f"the alpha of clip {clip + 1} is {list(alpha.shape)}, the program yields {expected}: "
                    "give each frame's, of the frame's size"
                )
            check_finite(alpha, f"the alpha of clip {clip + 1}")

    def _teacher_alpha(self, context: Context, frames: list[dict[str, Tensor]], clip: int) -> Tensor:
        teacher = context.teacher
        if teacher is None:
            raise CalibrationError(
                "the clips have no true alpha and there is no float program to stand in for it: run the whole "
                "pipeline from a float program, or in Python give Context(alphas=...) or Context(teacher=...)"
            )
        zeros = Feed(teacher, context.clips).zeros(clip)
        return unrolled_alpha(teacher, alpha_name(teacher), Piece(frames, zeros, torch.empty(0)))

    def _flow_finder(self) -> Callable[[Tensor], Tensor] | None:
        if self.flow_checkpoint is not None:
            return functools.partial(raft_flow, network=load_raft(Path(self.flow_checkpoint)))
        return dis_flow if self.flow == "dis" else None


def _pictures(program: Program, frames: list[dict[str, Tensor]]) -> Tensor:
    names = [name for name, value in frames[0].items() if value.ndim == 4 and value.shape[1] == 3]
    if not names:
        raise CalibrationError(f"{program.name} takes no picture (1,3,H,W) to find motion in: use flow=none")
    return torch.cat([frame[names[0]] for frame in frames])
