"""Learning the two numbers of every layer and all scales of activations together, end to end through time.

Adam, whose rate falls to 0 along a cosine. A step changes each value by about the rate times the value's unit:

    gamma            1, which it begins at
    beta of outputs  1
    beta of weights  mean |W_hat| / sqrt(n),  n the weights that one output reads
    scale            what it was at first

The values differ by orders of magnitude: an absolute rate that moves the large scales throws the small ones away.

The loss is rough: it may rise from one epoch to the next, so the values of the best one are kept. It is also chaotic: a
frame that changes by a millionth gets other codes somewhere, which later layers and frames carry on. What is best among
several epochs may therefore be so by chance, and has to show itself on such changes before it counts. A few pieces may
also outweigh all others: what more of them lose than gain promises nothing for other clips.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mattecompress.interface import alpha_name
from mattecompress.modules.quantizer import SMALLEST_SCALE, FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.affine import SMALLEST_GAMMA, ApplyTo, Numbers, absorb, insert, layers_of
from mattecompress.reconstruction.checkpoints import Checkpoints
from mattecompress.reconstruction.units import reads_weight
from mattecompress.reconstruction.unrolled import FlowTerm, Piece, sequence_loss, unrolled_alpha
from mattecompress.running.feed import CalibrationError
from mattecompress.side_by_side import side_by_side

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
DRAWS, CHANGE = 3, 1e-6


class Learned:
    """What is learned, acting in a copy of a program whose weights are rounded for good.

    numbers: gamma and beta of each layer or of its channels; scales: of each quantizer of activations; both by the
        quantizer's path.
    """

    def __init__(self, program: Program, apply_to: ApplyTo, numbers: Numbers = "layer") -> None:
        self.copy, self.apply_to = program.clone(), apply_to
        calls = self.copy.called_modules(FakeQuantize)
        layers = layers_of(self.copy)
        self.numbers = {
            str(layer.call.target): insert(self.copy, layer, apply_to, numbers) for layer in layers
        }
        self.scales: dict[str, nn.Parameter] = {}
        self._sizes: dict[str, float] = {}
        for call in calls:
            quantizer = self.copy.module(call, FakeQuantize)
            if reads_weight(call):
                weight = self.copy.tensor(call.all_input_nodes[0])
                with torch.no_grad():
                    weight.copy_(quantizer(weight))
                self._sizes[str(call.target)] = float(weight.detach().abs().mean()) / weight[0].numel() ** 0.5
                self.copy.add_module(str(call.target), nn.Identity())
            else:
                self.scales[str(call.target)] = quantizer.scale
        self.copy.graph_module.recompile()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every value that is learned, by name."""
        named = {
            f"{path}.{name}": number
            for path, pair in self.numbers.items()
            for name, number in zip(("gamma", "beta"), pair, strict=True)
        }
        return named | {f"{path}.scale": scale for path, scale in self.scales.items()}

    def unit(self, name: str) -> float:
        """What a step of rate 1 changes a value by."""
        path, _, kind = name.rpartition(".")
        if kind == "scale":
            return max(float(self.scales[path].detach().abs()), SMALLEST_SCALE)
        return self._sizes[path] if kind == "beta" and self.apply_to == "weights" else 1.0

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Let no gamma reach 0."""
        for gamma, _ in self.numbers.values():
            gamma.clamp_(min=SMALLEST_GAMMA)

    @torch.no_grad()
    def absorb(self, program: Program) -> None:
        """Write what was learned into the program that was copied."""
        for layer in layers_of(program):
            gamma, beta = self.numbers[str(layer.call.target)]
            absorb(program, layer, gamma.detach(), beta.detach(), self.apply_to)
        for path, scale in self.scales.items():
            quantizer = program.graph_module.get_submodule(path)
            assert isinstance(quantizer, FakeQuantize)
            quantizer.scale.copy_(scale)


@dataclass(frozen=True)
class Schedule:
    """Epochs over all pieces, pieces in each step, Adam's first rate, the flow term, and the seed."""

    epochs: int
    batch: int
    rate: float
    flow: FlowTerm
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Mean losses of the values at first and of the best ones, on frames changed by a millionth where they differ.

    certain: each of the best ones' losses is below each of the others', by chance one time in twenty, and no more
        pieces lose than gain.
    """

    before: float
    after: float
    certain: bool

    def __str__(self) -> str:
        return f"{1000 * self.before:.3f} -> {1000 * self.after:.3f}"


class EndToEnd:
    """One run over the pieces; after each epoch all that the next one needs is kept in a checkpoint."""

    def __init__(
        self, learned: Learned, pieces: Sequence[Piece], schedule: Schedule, checkpoints: Checkpoints
    ) -> None:
        self.learned, self.pieces, self.schedule, self.checkpoints = learned, pieces, schedule, checkpoints
        self.alpha, self.parameters = alpha_name(learned.copy), learned.parameters
        self.units = {name: learned.unit(name) for name in self.parameters}
        self.optimizer = torch.optim.Adam([{"params": [value]} for value in self.parameters.values()])
        self.losses: list[float] = []
        self.first = self._values()
        self.best = self.first

    def learn(self, progress: Callable[[int, int, str], None]) -> Outcome:
        """Take all steps, or those that are left, go back to the epoch of least loss, and compare it with the start.

        Raises:
            CheckpointError: the checkpoint is damaged or of another form.
            CalibrationError: a loss is not finite.
        """
        generator = torch.Generator().manual_seed(self.schedule.seed)
        done, steps = self._resume(), -(-len(self.pieces) // self.schedule.batch)
        if not done:
            self._look()
        taken = self.schedule.epochs * steps
        total = taken + 2 * DRAWS
        for epoch in range(self.schedule.epochs):
            order = torch.randperm(len(self.pieces), generator=generator).split(self.schedule.batch)
            if epoch < done:
                continue
            for step, chosen in enumerate(order, start=epoch * steps):
                self._step([self.pieces[index] for index in chosen.tolist()], step / taken)
                progress(step + 1, total, "calibrate-affine")
            self._look()
            self._keep(epoch + 1)
        return self._compare(lambda looks: progress(taken + looks, total, "calibrate-affine"))

    def _compare(self, tell: Callable[[int], None]) -> Outcome:
        """The values at first beside the best ones, which stay."""
        if min(self.losses) == self.losses[0]:
            self._go_to(self.first)
            return Outcome(self.losses[0], self.losses[0], certain=False)
        looks: list[Tensor] = []
        for values in (self.first, self.best):
            self._go_to(values)
            for _ in range(DRAWS):
                looks.append(self.losses_of([self._changed(piece, len(looks)) for piece in self.pieces]))
                tell(len(looks))
        first, best = torch.stack(looks).split(DRAWS)
        before, after = first.mean(1), best.mean(1)
        gaining = int((first - best).mean(0).sign().sum())
        certain = bool(after.max() < before.min()) and gaining >= 0
        return Outcome(float(before.mean()), float(after.mean()), certain)

    def loss(self, pieces: Sequence[Piece]) -> float:
        """The mean over pieces.

        Raises:
            CalibrationError: it is not finite.
        """
        return float(self.losses_of(pieces).mean())

    @torch.no_grad()
    def losses_of(self, pieces: Sequence[Piece]) -> Tensor:
        """(pieces,), the loss of each.

        Raises:
            CalibrationError: one is not finite.
        """
        losses = torch.stack(side_by_side(self._loss, pieces))
        if not losses.isfinite().all():
            raise CalibrationError("the loss is not finite: check the clips, their alpha and the weights")
        return losses

    def _loss(self, piece: Piece) -> Tensor:
        return sequence_loss(unrolled_alpha(self.learned.copy, self.alpha, piece), piece, self.schedule.flow)

    def _step(self, chosen: Sequence[Piece], done: float) -> None:
        values, share = list(self.parameters.values()), (1 + math.cos(math.pi * done)) / 2
        for group, unit in zip(self.optimizer.param_groups, self.units.values(), strict=True):
            group["lr"] = self.schedule.rate * share * unit
        for value in values:
            value.grad = torch.zeros_like(value)
        for gradients in side_by_side(
            lambda piece: torch.autograd.grad(self._loss(piece) / len(chosen), values, allow_unused=True),
            chosen,
        ):
            for value, gradient in zip(values, gradients, strict=True):
                if gradient is not None and value.grad is not None:
                    value.grad += gradient
        self.optimizer.step()
        self.learned.keep_positive()

    def _look(self) -> None:
        """Remember the values if their loss is the least so far."""
        loss = self.loss(self.pieces)
        if not self.losses or loss < min(self.losses):
            self.best = self._values()
        self.losses.append(loss)

    def _changed(self, piece: Piece, draw: int) -> Piece:
        """A piece whose frames differ by about a millionth, in another way for each draw."""
        generator = torch.Generator().manual_seed(self.schedule.seed + draw)
        frames = [
            {name: x * (1 + CHANGE * torch.randn(x.shape, generator=generator)) for name, x in frame.items()}
            for frame in piece.frames
        ]
        return replace(piece, frames=frames)

    def _values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def _go_to(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(values[name])

    def _keep(self, epochs: int) -> None:
        tensors = dict(self.parameters) | {
            f"{name}/{moment}": self.optimizer.state[value][moment]
            for name, value in self.parameters.items()
            for moment in MOMENTS
        }
        tensors |= {f"{name}/best": value for name, value in self.best.items()}
        self.checkpoints.save("epochs", tensors, {"done": epochs, "losses": self.losses})

    @torch.no_grad()
    def _resume(self) -> int:
        """How many epochs a checkpoint has."""
        found = self.checkpoints.load("epochs")
        if found is None:
            return 0
        tensors, record = found
        with self.checkpoints.taking("epochs"):
            for name, value in self.parameters.items():
                value.copy_(tensors[name])
                self.optimizer.state[value] = {moment: tensors[f"{name}/{moment}"] for moment in MOMENTS}
            self.best = {name: tensors[f"{name}/best"] for name in self.parameters}
            self.losses = list(record["losses"])
            return int(record["done"])
