"""The walk over all units: learn one, keep what made it better, move on with what it now yields."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.checkpoints import Checkpoints
from mattecompress.reconstruction.error import Error, decibels
from mattecompress.reconstruction.learning import Learner, Stage
from mattecompress.reconstruction.prefix import Prefix
from mattecompress.reconstruction.samples import Samples
from mattecompress.reconstruction.store import Store
from mattecompress.reconstruction.units import Unit
from mattecompress.running.feed import Feed

TELL_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """What became of one unit in one stage.

    before, after: noise over signal of its outputs with nearest and with learned rounding and scales.
    kept: whether what was learned was kept; what made the unit worse is not.
    """

    stage: str
    label: str
    before: float
    after: float
    kept: bool


class Walk:
    """Changes the weights and activation scales of a quantized program, region by region.

    program: with regions and fake quantizers; each quantized weight is read by its quantizer only.
    reference: a copy whose weights are still float.
    feed: the clips.
    seed: with a unit's label and stage, it decides every draw for that unit.
    memory: bytes of values kept in memory; the rest goes to files.
    """

    def __init__(
        self,
        program: Program,
        reference: Program,
        feed: Feed,
        seed: int,
        memory: int,
        checkpoints: Checkpoints,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.program, self.reference, self.feed, self.seed = program, reference, feed, seed
        self.memory, self.checkpoints, self.progress = memory, checkpoints, progress

    def run(self, stage: Stage, done: int, total: int) -> list[Outcome]:
        """One stage; `done` of `total` iterations lie behind.

        Raises:
            CalibrationError: a value is not finite.
            CheckpointError: a checkpoint is damaged or of another form.
        """
        outcomes = []
        with tempfile.TemporaryDirectory() as temporary:
            store = Store(self.memory, self.checkpoints.scratch(Path(temporary)))
            exact = Prefix(self.reference, "float", self.feed, store)
            rounded = Prefix(self.program, stage.form, self.feed, store)
            for position, unit in enumerate(rounded.units):
                exact.run(exact.units[position])
                if not learnable(self.program, unit, stage):
                    rounded.run(unit)
                else:
                    what = f"{stage.name} {unit.label}"
                    outcome = self._restored(stage, position, rounded)
                    if outcome is None:
                        tell = self._teller(done, total, what)
                        outcome = self._learned(stage, position, exact, rounded, tell)
                    outcomes.append(outcome)
                    done += stage.iterations
                    self.progress(done, total, f"{what} {_change(outcome)}")
                exact.forget(position)
                rounded.forget(position)
        return outcomes

    def _teller(self, done: int, total: int, what: str) -> Callable[[int], None]:
        def tell(step: int) -> None:
            if step % TELL_EVERY == 0:
                self.progress(done + step, total, what)

        return tell

    def _restored(self, stage: Stage, position: int, rounded: Prefix) -> Outcome | None:
        found = self.checkpoints.load(_file(stage, position))
        if found is None:
            return None
        tensors, record = found
        unit = rounded.units[position]
        with self.checkpoints.taking(_file(stage, position)):
            outcome = Outcome(**record)
            _write(tensors, _tensors(self.program, unit))
        rounded.run(unit)
        return outcome

    def _learned(
        self, stage: Stage, position: int, exact: Prefix, rounded: Prefix, tell: Callable[[int], None]
    ) -> Outcome:
        unit = rounded.units[position]
        held = _tensors(self.program, unit)
        old = {name: value.detach().clone() for name, value in held.items()}
        before = _measured(position, exact, rounded)
        generator = torch.Generator().manual_seed(_seed(self.seed, stage.name, unit.label))
        samples = Samples(exact, rounded, position, stage.inputs, stage.keep, generator)
        learner = Learner(self.program, unit, stage, samples)
        learner.learn(tell)
        learner.write_weights()
        after = _measured(position, exact, rounded)
        kept = after <= before
        if not kept:
            _write(old, held)
            round_to_nearest(self.program, unit)
            rounded.run(unit)
        outcome = Outcome(stage.name, unit.label, before, after, kept)
        self.checkpoints.save(_file(stage, position), held, asdict(outcome))
        return outcome


def learnable(program: Program, unit: Unit, stage: Stage) -> bool:
    """Whether a stage has something to learn in a unit; what stands outside of all regions is left alone."""
    kinds = [
        of_weights for of_weights, rate in ((True, stage.rounding_rate), (False, stage.scale_rate)) if rate
    ]
    return not unit.label.startswith("%") and any(unit.quantizers(program, kind) for kind in kinds)


@torch.no_grad()
def round_to_nearest(program: Program, unit: Unit) -> None:
    """Write what its quantizer makes of it in place of each of the unit's weights."""
    for call in unit.quantizers(program, of_weights=True):
        weight, quantizer = program.tensor(call.all_input_nodes[0]), program.module(call)
        weight.copy_(quantizer(weight))


def describe(outcomes: Iterable[Outcome]) -> str:
    """Each block's signal to noise ratio before and after."""
    return ", ".join(f"{outcome.label} {_change(outcome)}" for outcome in outcomes)


def mean_decibels(ratios: Sequence[float]) -> float:
    """The mean over the blocks that have any noise."""
    finite = [decibels(ratio) for ratio in ratios if ratio > 0]
    return sum(finite) / len(finite) if finite else float("inf")


def _change(outcome: Outcome) -> str:
    kept = "" if outcome.kept else " (not kept)"
    return f"{decibels(outcome.before):.1f} -> {decibels(outcome.after):.1f} dB{kept}"


def _measured(position: int, exact: Prefix, rounded: Prefix) -> float:
    """Run the unit in its rounded form and compare."""
    error, unit, own = Error(), exact.units[position], rounded.units[position]
    rounded.run(own)
    for place in rounded.feed.places:
        error.add(rounded.outputs(own, place), exact.outputs(unit, place))
    return error.ratio


def _tensors(program: Program, unit: Unit) -> dict[str, Tensor]:
    """What learning may change: the quantized weights and the scales of activations, by name."""
    weights = [call.all_input_nodes[0] for call in unit.quantizers(program, of_weights=True)]
    named = {str(node.target): program.tensor(node) for node in weights}
    for call in unit.quantizers(program, of_weights=False):
        quantizer = program.module(call, FakeQuantize)
        named[f"{call.target}.scale"] = quantizer.scale
    return named


@torch.no_grad()
def _write(values: dict[str, Tensor], held: dict[str, Tensor]) -> None:
    for name, value in held.items():
        value.copy_(values[name])


def _file(stage: Stage, position: int) -> str:
    return f"{stage.name}-{position:04d}"


def _seed(seed: int, stage: str, label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{label}".encode()).digest()[:7])
