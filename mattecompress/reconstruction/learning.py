"""Learning a unit's rounding and activation scales against the outputs of its float form.

    loss = sum over outputs of mean over all but axis 1 of sum over axis 1 of |y - y*|^p + weight * regularizer

Source: BRECQ (rounding, then scales on float inputs) and QDrop (both together; each element of the unit's inputs and
of every activation quantizer's output is left unquantized with a probability).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.forms import Form, replacement
from mattecompress.reconstruction.patience import Patience
from mattecompress.reconstruction.rounding import LearnedRounding, beta_at
from mattecompress.reconstruction.samples import Batch, Inputs, Samples, drawn, joined, takes_batches
from mattecompress.reconstruction.store import Value
from mattecompress.reconstruction.units import Unit, reads_weight, unit_module


@dataclass(frozen=True)
class Stage:
    """One walk over all units.

    form: of the prefix and of the unit itself while it learns.
    rounding_rate, scale_rate: Adam's rates; 0 does not learn these. Scales' rates fall to 0 along a cosine.
    inputs: where the unit's inputs come from.
    keep: the probability with which a mixed input, and an activation in a mixed stage, is quantized.
    power: p of the loss.
    regularizer, warm_up: weight of the rounding's regularizer, and the share of iterations without it.
    patience: iterations behind the warm-up that may pass without less error before learning stops; None takes all.
    """

    name: str
    form: Form
    iterations: int
    batch: int
    rounding_rate: float
    scale_rate: float
    inputs: Inputs
    keep: float
    power: float
    regularizer: float
    warm_up: float
    patience: int | None


class _SometimesQuantized(nn.Module):
    """While it learns, leaves each element as it is, unless it is drawn."""

    def __init__(self, quantizer: FakeQuantize, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer, self.keep, self.generator = quantizer, keep, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            quantized: Tensor = self.quantizer(x)
            return quantized
        return self.quantizer.partly(x, drawn(x.shape, self.keep, self.generator))


class Learner:
    """One unit within one stage. Weights stay float until `write_weights`; scales change as they are learned."""

    def __init__(self, program: Program, unit: Unit, stage: Stage, samples: Samples) -> None:
        self.program, self.unit, self.stage, self.samples = program, unit, stage, samples
        self.roundings: dict[fx.Node, LearnedRounding] = {}
        self.scales: list[nn.Parameter] = []
        if stage.rounding_rate:
            for call in unit.quantizers(program, of_weights=True):
                weight = program.tensor(call.all_input_nodes[0])
                self.roundings[call] = LearnedRounding(program.module(call, FakeQuantize), weight)
        if stage.scale_rate:
            calls = unit.quantizers(program, of_weights=False)
            self.scales = [program.module(call, FakeQuantize).scale for call in calls]
        self.module = unit_module(program, unit, self._replace)

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self.roundings or self.scales)

    def learn(self, tell: Callable[[int], None]) -> None:
        """Take all steps, or those that patience allows; `tell` is called with the number of each."""
        stage = self.stage
        logits = [rounding.logits for rounding in self.roundings.values()]
        groups = [
            {"params": params, "lr": rate}
            for params, rate in ((logits, stage.rounding_rate), (self.scales, stage.scale_rate))
            if params
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        exact = unit_module(self.program, self.unit, replacement("float", self.program))
        together = takes_batches(exact, *self.samples.ends())
        learned = [*logits, *self.scales]
        patience = self._patience(learned, together) if stage.patience else None
        self._set_learning(True)
        for step in range(stage.iterations):
            if self.scales:
                share = (1 + torch.tensor(torch.pi * step / stage.iterations).cos().item()) / 2
                optimizer.param_groups[-1]["lr"] = stage.scale_rate * share
            batches = self.samples.draw(stage.batch)
            loss = self._distance(batches, together)
            for parameter, gradient in zip(learned, _gradients(loss, learned), strict=True):
                parameter.grad = gradient
            self._regularize(step)
            optimizer.step()
            tell(step + 1)
            if patience and step >= stage.warm_up * stage.iterations and patience.exhausted(step + 1):
                break
        if patience:
            patience.restore()
        for parameter in learned:
            parameter.grad = None

    @torch.no_grad()
    def write_weights(self) -> None:
        """Put the hard rounding into the program."""
        for call, rounding in self.roundings.items():
            self.program.tensor(call.all_input_nodes[0]).copy_(rounding.rounded())

    def _patience(self, learned: Sequence[Tensor], together: bool) -> Patience:
        """Judges by fixed frames, everything quantized and rounded as it will be."""
        assert self.stage.patience
        frames = self.samples.fixed(self.stage.batch)

        @torch.no_grad()
        def error() -> float:
            self._set_learning(False)
            distance = float(self._distance(frames, together))
            self._set_learning(True)
            return distance

        return Patience(learned, error, self.stage.patience)

    def _set_learning(self, on: bool) -> None:
        for module in self.module.modules():
            if isinstance(module, LearnedRounding | _SometimesQuantized):
                module.train(on)

    def _distance(self, batches: Sequence[Batch], together: bool) -> Tensor:
        met = [joined(batches)] if together else batches
        return torch.stack([self._loss(self.module(*batch.inputs), batch.targets) for batch in met]).mean()

    def _loss(self, outputs: Sequence[Value], targets: Sequence[Value]) -> Tensor:
        total = torch.zeros(())
        for found, target in zip(outputs, targets, strict=True):
            if isinstance(found, Tensor) and isinstance(target, Tensor) and found.is_floating_point():
                total = (
                    total
                    + self._total(found, target) * (found.shape[1] if found.ndim > 1 else 1) / found.numel()
                )
        return total

    def _total(self, found: Tensor, target: Tensor) -> Tensor:
        """Sum of |y - y*|^p."""
        if self.stage.power == 2:
            return F.mse_loss(found, target, reduction="sum")
        return (found - target).abs().pow(self.stage.power).sum()

    def _regularize(self, step: int) -> None:
        """Add the regularizer's gradient to those of the logits."""
        beta = beta_at(step, self.stage.iterations, self.stage.warm_up)
        if beta is None:
            return
        for rounding in self.roundings.values():
            gradient = rounding.regularizer_gradient(beta).mul_(self.stage.regularizer)
            logits = rounding.logits
            logits.grad = gradient if logits.grad is None else logits.grad.add_(gradient)

    def _replace(self, node: fx.Node) -> nn.Module | None:
        if node in self.roundings:
            return self.roundings[node]
        quantizer = self.program.module(node)
        mixed = self.stage.inputs == "mixed" and not reads_weight(node)
        if mixed and isinstance(quantizer, FakeQuantize):
            return _SometimesQuantized(quantizer, self.stage.keep, self.samples.generator)
        return replacement(self.stage.form, self.program)(node)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(parameters)
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    return gradients
