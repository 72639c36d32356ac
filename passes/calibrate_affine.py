"""min over gamma, beta of each layer and all activation scales s of  mean (a - a*)^2 + w * mean |a_t - warp(a_{t-1})|

end to end over short sequences, states and gradients carried through time; roundings and zero points stay. a* is the
true alpha, or the float program's where it is unknown. `mattecompress.reconstruction.affine` has the two forms of
gamma and beta and how they are absorbed: the codes of the weights stay what they were.

Sources: PTQ4VM section 4.2 (GAC) and 4.3 (OFA), and its published code for the output form, the rates and epochs.
Departures: every quantized convolution gets the two numbers, not only those that had a batch norm; flow is OpenCV's
DIS, not RAFT; what does not lower the loss over the calibration clips is undone.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mattecompress.evaluation import alpha_name
from mattecompress.feed import CalibrationError, Feed
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.optical_flow import dis_flow
from mattecompress.options import OptionError
from mattecompress.passes.reconstruct_blocks import own_weights, weight_calls
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.reconstruction.affine import SMALLEST_GAMMA, ApplyTo, absorb, insert, layers_of
from mattecompress.reconstruction.unrolled import Piece, sequence_loss, unrolled_alpha


@dataclass(frozen=True)
class CalibrateAffine(Pass):
    """Learn two numbers for each quantized layer and all scales of activations end to end; afterwards all is absorbed.

    apply_to: output or weights.
    flow: none, or dis for the term that follows motion, which needs the extra `flow`.
    flow_weight: of that term.
    epochs: over all sequences.
    batch: sequences in each step.
    frames: of each sequence; clips are cut into such.
    rate: Adam's, which falls to 0 along a cosine.
    """

    apply_to: ApplyTo = "output"
    flow: Literal["none", "dis"] = "none"
    flow_weight: float = 0.05
    epochs: int = 55
    batch: int = 4
    frames: int = 4
    rate: float = 1e-4
    name: ClassVar[str] = "calibrate-affine"

    def __post_init__(self) -> None:
        for what, value in (("epochs", self.epochs), ("batch", self.batch), ("frames", self.frames)):
            if value < 1:
                raise OptionError(f"{what}={value}: expected at least 1")
        if self.rate <= 0 or self.flow_weight < 0:
            raise OptionError("rate has to be above 0 and flow-weight at least 0")

    def requires(self, program: Program) -> None:
        """The program has quantized convolutions."""
        expect(layers_of(program), "no convolution is quantized: run quantize before calibrate-affine")

    def apply(self, program: Program, context: Context) -> str | None:
        """Learn on a copy, and absorb what was learned if it helped."""
        pieces = self._pieces(program, context)
        own_weights(program)
        copy = program.clone()
        learned = _Learned(copy, self.apply_to)
        before = self._loss(copy, pieces)
        self._learn(copy, learned, pieces, context)
        after = self._loss(copy, pieces)
        if not after < before:
            return None
        learned.absorb(program)
        return (
            f"{len(learned.numbers)} layers and {len(learned.scales)} activation scales over {len(pieces)} sequences, "
            f"loss x 1000: {1000 * before:.3f} -> {1000 * after:.3f}"
        )

    def _learn(self, copy: Program, learned: "_Learned", pieces: list[Piece], context: Context) -> None:
        name, parameters = alpha_name(copy), learned.parameters
        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        generator = torch.Generator().manual_seed(context.seed)
        steps = self.epochs * -(-len(pieces) // self.batch)
        for step in range(steps):
            if step % (steps // self.epochs) == 0:
                order = torch.randperm(len(pieces), generator=generator).split(self.batch)
            chosen = [pieces[index] for index in order[step % len(order)].tolist()]
            optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * step / steps)) / 2
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            for piece in chosen:
                loss = sequence_loss(unrolled_alpha(copy, name, piece), piece, self.flow_weight) / len(chosen)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None and parameter.grad is not None:
                        parameter.grad += gradient
            optimizer.step()
            learned.keep_positive()
            context.progress(step + 1, steps, "calibrate-affine")

    @torch.no_grad()
    def _loss(self, program: Program, pieces: list[Piece]) -> float:
        """The mean over all sequences.

        Raises:
            CalibrationError: it is not finite.
        """
        name = alpha_name(program)
        losses = [
            sequence_loss(unrolled_alpha(program, name, piece), piece, self.flow_weight) for piece in pieces
        ]
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise CalibrationError("the loss is not finite: check the clips, their alpha and the weights")
        return mean

    @torch.no_grad()
    def _pieces(self, program: Program, context: Context) -> list[Piece]:
        """Clips cut into sequences, the last of a clip maybe shorter."""
        feed, alphas = Feed(program, context.clips), context.alphas or [None] * len(context.clips)
        if len(alphas) != len(feed):
            raise CalibrationError(
                f"{len(feed)} clips have {len(alphas)} alphas: give one, or none, for each"
            )
        pieces = []
        for clip, start in ((c, s) for c in range(len(feed)) for s in range(0, feed.length(c), self.frames)):
            places = range(start, min(start + self.frames, feed.length(clip)))
            frames = [feed.frame(clip, place) for place in places]
            true = alphas[clip]
            if true is None:
                true_piece = self._teacher_alpha(context, frames, clip)
            else:
                true_piece = true[start : start + len(frames)]
            pieces.append(Piece(frames, feed.zeros(clip), true_piece, self._flow(program, frames)))
        return pieces

    def _teacher_alpha(self, context: Context, frames: list[dict[str, Tensor]], clip: int) -> Tensor:
        teacher = context.teacher
        if teacher is None:
            raise CalibrationError(
                "the clips have no true alpha and there is no float program to stand in for it: run the whole "
                "pipeline from a float program, or in Python give Context(alphas=...) or Context(teacher=...)"
            )
        zeros = Feed(teacher, context.clips).zeros(clip)
        return unrolled_alpha(teacher, alpha_name(teacher), Piece(frames, zeros, torch.empty(0)))

    def _flow(self, program: Program, frames: list[dict[str, Tensor]]) -> Tensor | None:
        if self.flow == "none":
            return None
        pictures = [name for name, value in frames[0].items() if value.ndim == 4 and value.shape[1] == 3]
        if not pictures:
            raise CalibrationError(
                f"{program.name} takes no picture (1,3,H,W) to find motion in: use flow=none"
            )
        return dis_flow(torch.cat([frame[pictures[0]] for frame in frames]))


class _Learned:
    """What is learned, acting in a copy of the program whose weights are rounded for good."""

    def __init__(self, copy: Program, apply_to: ApplyTo) -> None:
        self.apply_to: ApplyTo = apply_to
        layers = layers_of(copy)
        self.numbers = {str(layer.call.target): insert(copy, layer, apply_to) for layer in layers}
        self.scales: dict[str, nn.Parameter] = {}
        weights = weight_calls(copy)
        for call in copy.called_modules(FakeQuantize):
            quantizer = copy.module(call)
            assert isinstance(quantizer, FakeQuantize)
            if call in weights:
                weight = copy.tensor(call.all_input_nodes[0])
                with torch.no_grad():
                    weight.copy_(quantizer(weight))
                copy.add_module(str(call.target), nn.Identity())
            else:
                self.scales[str(call.target)] = quantizer.scale
        copy.graph_module.recompile()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*(number for pair in self.numbers.values() for number in pair), *self.scales.values()]

    @torch.no_grad()
    def keep_positive(self) -> None:
        for gamma, _ in self.numbers.values():
            gamma.clamp_(min=SMALLEST_GAMMA)

    @torch.no_grad()
    def absorb(self, program: Program) -> None:
        for layer in layers_of(program):
            gamma, beta = self.numbers[str(layer.call.target)]
            absorb(program, layer, gamma.detach(), beta.detach(), self.apply_to)
        for path, scale in self.scales.items():
            quantizer = program.graph_module.get_submodule(path)
            assert isinstance(quantizer, FakeQuantize)
            quantizer.scale.copy_(scale)
