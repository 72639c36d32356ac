"""min over rounding V and activation scales s of sum |block(x_hat; W_hat(V), s) - block(x; W)|^p,  block after block

x and the target come from the float program, x_hat from the program quantized so far, with the recurrent state of
each carried through every clip. `mattecompress.reconstruction` has the rounding, the loss and the walk.

brecq: rounding alone, on inputs of the weight-quantized program; then, ranges searched anew, scales alone, on float
inputs, for a quarter of the iterations at ten times qdrop's rate and with p = 2.4.
qdrop: both together, each element of the block's inputs and of its quantized activations left float with
probability 1/2. PTQ4VM's first stage is this one.

Sources: BRECQ, QDrop, and PTQ4VM section 4.1 with its published code. Departures: every output of a block is a
target, where PTQ4VM's code takes the first only; a recurrent block learns from single frames with the states that
either program had there; activations are quantized where convolutions read them; a block that got worse is undone.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Literal

import torch
from torch import fx, nn

from mattecompress.memory import freed_memory_kept
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.options import OptionError
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.quantization.calibration import fit_activations, observe
from mattecompress.reconstruction.checkpoints import Checkpoints, identity_of
from mattecompress.reconstruction.learning import Stage
from mattecompress.reconstruction.units import cut_units, reads_weight
from mattecompress.reconstruction.walk import (
    Outcome,
    Walk,
    describe,
    learnable,
    mean_decibels,
    round_to_nearest,
)
from mattecompress.running.feed import Feed

MEBIBYTE = 1 << 20
SCALE_RATE = {"brecq": 4e-4, "qdrop": 4e-5}
BRECQ_SCALE_SHARE, BRECQ_SCALE_POWER = 4, 2.4


@dataclass(frozen=True)
class ReconstructBlocks(Pass):
    """Learn the rounding of weights and the scales of activations in each region; afterwards weights are rounded.

    A block whose output is then further from the float program's than before keeps rounding to nearest. With a
    folder in the context, each block's result is kept there, and the same work goes on from it.

    method: brecq or qdrop.
    iterations: for each block.
    batch: frames in each iteration.
    rounding_rate: Adam's rate for the rounding.
    scale_rate: Adam's rate for the scales, which falls to 0 along a cosine; none means the method's own.
    regularizer: weight of the term that makes the rounding hard.
    warm_up: share of the iterations without that term; PTQ4VM's published code has 0.
    keep: qdrop's probability of quantizing an element.
    patience: a block is done once that many iterations behind the warm-up have brought no less error on fixed frames,
        with all rounded and quantized, and it gets the best it has been; none takes all iterations.
    memory: MiB of values kept in memory; beyond that they go to files.
    """

    method: Literal["brecq", "qdrop"]
    iterations: int = 20000
    batch: int = 32
    rounding_rate: float = 1e-3
    scale_rate: float | None = None
    regularizer: float = 0.01
    warm_up: float = 0.2
    keep: float = 0.5
    patience: int | None = None
    memory: int = 2048
    name: ClassVar[str] = "reconstruct-blocks"

    def __post_init__(self) -> None:
        counts = (("iterations", self.iterations), ("batch", self.batch), ("patience", self.patience))
        for what, value in counts:
            if value is not None and value < 1:
                raise OptionError(f"{what}={value}: expected at least 1")
        for what, share in (("warm-up", self.warm_up), ("keep", self.keep)):
            if not 0 <= share <= 1:
                raise OptionError(f"{what}={share:g}: expected a share from 0 to 1")
        if not all(0 < rate < inf for rate in (self.rounding_rate, self.scale_rate) if rate is not None):
            raise OptionError("rounding-rate and scale-rate have to be above 0 and finite")

    def requires(self, program: Program) -> None:
        """The program has regions and fake quantizers."""
        expect(
            program.called_modules(FakeQuantize),
            "nothing is quantized: run quantize before reconstruct-blocks",
        )
        expect(program.has_regions, "there are no blocks: run partition-blocks before quantize")

    def ensures(self, program: Program) -> None:
        """Every quantized weight is one that its quantizer can say."""
        expect(all(_is_rounded(program, call) for call in weight_calls(program)), "a weight is not rounded")

    def apply(self, program: Program, context: Context) -> str | None:
        """Walk over the blocks once for each stage of the method."""
        if all(_is_rounded(program, call) for call in weight_calls(program)):
            return None
        feed = Feed(program, context.clips)
        identity = identity_of(str(replace(self, memory=0)), context.seed, program, feed)
        checkpoints = Checkpoints(context.folder, self.name, identity)
        own_weights(program)
        walk = Walk(
            program,
            program.clone(),
            feed,
            context.seed,
            self.memory * MEBIBYTE,
            checkpoints,
            context.progress,
        )
        units, stages = cut_units(program), self._stages()
        counts = [sum(learnable(program, unit, stage) for unit in units) for stage in stages]
        work = [count * stage.iterations for count, stage in zip(counts, stages, strict=True)]
        outcomes: list[Outcome] = []
        with freed_memory_kept():
            for number, stage in enumerate(stages):
                if number:
                    _refit_activations(program, context)
                outcomes += walk.run(stage, sum(work[:number]), sum(work))
                if stage.rounding_rate:
                    for unit in units:
                        round_to_nearest(program, unit)
        return self._describe(outcomes)

    def _stages(self) -> list[Stage]:
        rate = self.scale_rate or SCALE_RATE[self.method]
        rounding = (self.rounding_rate, self.regularizer, self.warm_up)
        if self.method == "qdrop":
            return [self._stage("qdrop", "quantized", rounding, rate, "mixed", 2.0, self.iterations)]
        steps = max(1, self.iterations // BRECQ_SCALE_SHARE)
        return [
            self._stage("rounding", "weights", rounding, 0.0, "quantized", 2.0, self.iterations),
            self._stage("scales", "quantized", (0.0, 0.0, 0.0), rate, "float", BRECQ_SCALE_POWER, steps),
        ]

    def _stage(
        self,
        name: str,
        form: Literal["weights", "quantized"],
        rounding: tuple[float, float, float],
        scale_rate: float,
        inputs: Literal["float", "quantized", "mixed"],
        power: float,
        iterations: int,
    ) -> Stage:
        rate, regularizer, warm_up = rounding
        return Stage(
            name,
            form,
            iterations,
            self.batch,
            rate,
            scale_rate,
            inputs,
            self.keep,
            power,
            regularizer,
            warm_up,
            self.patience,
        )

    def _describe(self, outcomes: list[Outcome]) -> str:
        texts = []
        for stage in dict.fromkeys(outcome.stage for outcome in outcomes):
            own = [outcome for outcome in outcomes if outcome.stage == stage]
            before = mean_decibels([outcome.before for outcome in own])
            final = [outcome.after if outcome.kept else outcome.before for outcome in own]
            undone = sum(not outcome.kept for outcome in own)
            texts.append(
                f"{stage}: {len(own)} blocks, {undone} undone, {before:.1f} -> {mean_decibels(final):.1f} dB "
                f"on average: {describe(own)}"
            )
        return "; ".join(texts)


def weight_calls(program: Program) -> list[fx.Node]:
    """The calls of fake quantizers of weights."""
    return [call for call in program.called_modules(FakeQuantize) if reads_weight(call)]


def _is_rounded(program: Program, call: fx.Node) -> bool:
    weight = program.tensor(call.all_input_nodes[0])
    return torch.equal(program.module(call)(weight), weight)


def own_weights(program: Program) -> None:
    """Give each quantizer of weights a tensor that nothing else reads."""
    for call in weight_calls(program):
        source = call.all_input_nodes[0]
        if len(source.users) > 1:
            copy = nn.Parameter(program.tensor(source).detach().clone())
            path = program.free_path(str(source.target))
            call.replace_input_with(source, program.constant(path, copy))


def _refit_activations(program: Program, context: Context) -> None:
    """Search the activations' ranges anew on the program with quantized weights only."""
    plain = program.clone()
    calls = [call for call in program.called_modules(FakeQuantize) if not reads_weight(call)]
    for call in calls:
        plain.add_module(str(call.target), nn.Identity())
    sources = [call.all_input_nodes[0].name for call in calls]
    seen = observe(plain, sources, context.clips, context.seed)
    for call, source in zip(calls, sources, strict=True):
        quantizer = program.module(call, FakeQuantize)
        fit_activations(quantizer, seen[source], "mse")
