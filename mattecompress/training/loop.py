"""The training loop: stages of a recipe, checkpoints that resume exactly, a record of what was done."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mattecompress.data.clips import procedural_clip
from mattecompress.data.datasets.mixing import MixedClips
from mattecompress.files import atomic_path
from mattecompress.models.checkpoints import read_checkpoint
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.training.batches import ClipSource
from mattecompress.training.beginning import Trainable, build_network, build_teacher, origin
from mattecompress.training.evaluation import HELD_OUT, HELD_OUT_SEED, HeldOut
from mattecompress.training.network import ProgramNetwork, solve_sizes
from mattecompress.training.objective import ClipObjective
from mattecompress.training.rates import parameter_groups, part_of
from mattecompress.training.recipe import Recipe, Stage
from mattecompress.training.state import RunState, TrainingError, save_weights
from mattecompress.training.trimap_network import TrimapNetwork, TrimapProgramNetwork
from mattecompress.training.trimap_objective import TrimapObjective
from mattecompress.training.world import World, join

Objective = ClipObjective | TrimapObjective
BETAS = (0.9, 0.999)
RECALIBRATION = 24
DATA = "mattecompress.data.clips.procedural_clip, drawn on the fly; no other pictures"


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished run did and reached."""

    weights: Path
    record: Path
    losses: tuple[float, ...]
    held_out: dict[str, Any]


def train(
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    *,
    name: str = "",
    network: Trainable | None = None,
    data: MixedClips | None = None,
    checkpoint: Path | None = None,
    teacher: Path | Trainable | None = None,
    device: str | None = None,
    save_every: int = 100,
    stop_after: int | None = None,
    held_out: HeldOut = HELD_OUT,
    quiet: bool = False,
) -> TrainingRecord | None:
    """Train `recipe` and write `out`/weights.safetensors and `out`/record.json; None when stopped early.

    A run that was broken off, even between two writes, goes on from its last checkpoint in `out` when the same call
    is made again, and gives the losses that it would have given. Under torchrun all processes train one network.

    Args:
        recipe: what to train.
        out: a folder of its own.
        seed: of the weights and of the clips.
        name: of the recipe, for the record.
        network: what to train instead of the recipe's model, such as `ProgramNetwork(program)`; it is trained in
            place and ends with the saved weights.
        data: clips to train on instead of procedural ones.
        checkpoint: weights for the recipe's model to begin with; random ones otherwise.
        teacher: what a recipe with mimicking or routing compares features with: weights for its teacher, which a
            routed network without a checkpoint also begins with, or another network; none for a program that
            `attach-distillation` has given its own.
        device: such as `cpu` or `cuda:0`; by default a GPU if there is one.
        save_every: steps between checkpoints.
        stop_after: stop, with a checkpoint, once this many steps of the whole run are done.
        held_out: clips that the final metrics are measured on.
        quiet: show no progress on standard error.

    Raises:
        TrainingError: `out` holds another run, the loss is no longer finite, the seed is that of the held-out
            clips, the recipe wants a teacher and none is given, or the other way round, or what lies beside
            `checkpoint` or `teacher` as their record is none.
        CheckpointError: `checkpoint` or `teacher` does not fit.
        UnsupportedPassError: the recipe asks a program for a pass or a size that it has not, or `held_out` does.
        DatasetError, MediaError: `data` cannot be read.
    """
    if seed == HELD_OUT_SEED:
        raise TrainingError(f"seed {seed} is that of the held-out clips; choose another")
    guide = build_teacher(recipe, name, teacher, network)
    if isinstance(network, ProgramNetwork | TrimapProgramNetwork):
        solve_sizes(network.program, torch.empty(1, 3, held_out.height, held_out.width, device="meta"))
    taught_by = origin(teacher) if isinstance(teacher, Path) else None
    with join(device) as world:
        start = network or build_network(recipe.model, seed, checkpoint, guide)
        begins_with = origin(checkpoint) if checkpoint else None
        run = Run(recipe, seed, world, start, data, guide)
        identity = {"recipe": asdict(recipe), "seed": seed, "processes": world.size}
        identity["checkpoint"] = begins_with and begins_with["sha256"]
        if data:
            identity["data"] = data.identity
        if taught_by:
            identity["teacher"] = taught_by["sha256"]
        run.state.restore(out, identity)
        last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
        with _progress(quiet or not world.leads) as progress:
            task = progress.add_task("train", total=recipe.steps, completed=run.state.step, loss=float("nan"))
            while run.state.step < last:
                loss = run.advance()
                progress.update(task, completed=run.state.step, loss=loss)
                if world.leads and (run.state.step % save_every == 0 or run.state.step == last):
                    run.state.save(out, identity)
                world.wait()
        if run.state.step < recipe.steps:
            return None
        return run.finish(out, name, held_out, {"begins_with": begins_with, "taught_by": taught_by})


class Run:
    """A training run in memory."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        world: World,
        network: Trainable,
        data: MixedClips | None = None,
        teacher: Trainable | None = None,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.world = world
        self.data = data.identity if data else DATA
        self.source = ClipSource(seed, world.rank, world.device, data or procedural_clip)
        self.objective = make_objective(recipe, self.source, network, teacher)
        module = network.module.to(world.device)
        self.one_bit = [part for part in module.modules() if isinstance(part, BinaryConv2d)]
        world.share(module)
        if teacher is not None:
            teacher.module.to(world.device).eval().requires_grad_(False)
        groups = parameter_groups(module, recipe.stages[0].rates, recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=BETAS)
        average = {k: v.clone() for k, v in module.state_dict().items()} if recipe.average else {}
        self.state = RunState(0, module, optimizer, average, [], 0.0)

    def advance(self) -> float:
        """Take one step; returns its loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        start = time.monotonic()
        stage, local = self.recipe.locate(self.state.step)
        self._enter(stage, local)
        self.state.optimizer.zero_grad(set_to_none=True)
        total = sum(self._backward(loss) for loss in self.objective.losses(stage, self.state.step))
        if not torch.isfinite(torch.tensor(total)):
            raise TrainingError(f"step {self.state.step}: the loss is {total}; lower the rates of the recipe")
        self.world.average_gradients(self.state.model)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.state.model.parameters(), self.recipe.clip_norm)
        self.state.optimizer.step()
        for layer in self.one_bit:
            layer.settle((self.state.step + 1) / self.recipe.steps)
        self.world.average_buffers(self.state.model)
        self._follow(local if stage.freeze_norms else self.state.step)
        self.state.losses.append(total)
        self.state.step += 1
        self.state.seconds += time.monotonic() - start
        return total

    def finish(self, out: Path, name: str, held_out: HeldOut, others: dict[str, Any]) -> TrainingRecord:
        """Save the weights, measure them as saved, write the record, with what it says of `others`."""
        module = self.state.model
        if self.state.average:
            module.load_state_dict(self.state.average)
            if not self.recipe.stages[-1].freeze_norms:
                recalibrate(self.objective, self.recipe.stages[-1], self.recipe.steps)
                self.world.average_buffers(module)
        weights, record = out / "weights.safetensors", out / "record.json"
        if self.world.leads:
            optional = frozenset(getattr(module, "optional_parts", ()))
            left_out = optional - self.recipe.trained_parts
            save_weights(module, weights, self.recipe.half, self.recipe.packed, left_out)
        self.world.wait()
        module.load_state_dict(read_checkpoint(weights), strict=False)
        module.eval()
        scores = self.objective.measure(held_out)
        document = {
            "recipe": {"name": name, **asdict(self.recipe)},
            "seed": self.seed,
            "processes": self.world.size,
            "steps": self.recipe.steps,
            "data": self.data,
            "torch": torch.__version__,
            "seconds": round(self.state.seconds),
            "held_out": scores,
            "losses": [round(loss, 5) for loss in self.state.losses],
            **others,
        }
        if self.world.leads:
            with atomic_path(record) as temporary:
                temporary.write_text(json.dumps(document) + "\n")
        return TrainingRecord(weights, record, tuple(self.state.losses), scores)

    def _enter(self, stage: Stage, local: int) -> None:
        module = self.state.model
        for group in self.state.optimizer.param_groups:
            rate = stage.rates.of(group["part"])
            group["lr"] = rate * self.recipe.scale(self.state.step)
            for parameter in group["params"]:
                parameter.requires_grad_(rate > 0)
        module.train()
        if stage.freeze_norms and local == 0 and self.state.average:
            module.load_state_dict(self.state.average)
        if self.recipe.measures_norms(self.state.step):
            recalibrate(self.objective, stage, self.state.step)
            self.world.average_buffers(module)
            for name in self.state.average:
                self.state.average[name] = module.state_dict()[name].clone()
        if stage.freeze_norms:
            for norm in norms(module):
                norm.eval()

    def _backward(self, loss: Tensor) -> float:
        loss.backward()
        return loss.item()

    def _follow(self, age: int) -> None:
        """Move the running mean of the weights, `age` steps after it began; fast at first, to forget the start."""
        decay = min(self.recipe.average, (1 + age) / (10 + age))
        current = self.state.model.state_dict()
        for name, mean in self.state.average.items():
            if mean.is_floating_point():
                mean.lerp_(current[name], 1 - decay)
            else:
                mean.copy_(current[name])


def make_objective(
    recipe: Recipe, source: ClipSource, network: Trainable, teacher: Trainable | None
) -> Objective:
    """What a step minimizes, by the kind of the network, which is its teacher's too."""
    if isinstance(network, TrimapNetwork):
        assert teacher is None or isinstance(teacher, TrimapNetwork)
        return TrimapObjective(recipe, source, network, teacher)
    assert not isinstance(teacher, TrimapNetwork)
    return ClipObjective(recipe, source, network, teacher)


@torch.no_grad()
def recalibrate(objective: Objective, stage: Stage, step: int) -> None:
    """Set batch-norm statistics (but the refiner's) to their means over RECALIBRATION batches of the stage's shape."""
    module = objective.network.module
    measured = norms(module)
    momenta = [norm.momentum for norm in measured]
    module.train()
    for norm in measured:
        norm.reset_running_stats()
        norm.momentum = None
    for index in range(RECALIBRATION):
        objective.look(stage, step + index)
    for norm, momentum in zip(measured, momenta, strict=True):
        norm.momentum = momentum


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms outside the refiner."""
    found = module.named_modules()
    return [norm for name, norm in found if isinstance(norm, nn.BatchNorm2d) and part_of(name) != "refiner"]


def _progress(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=quiet)
