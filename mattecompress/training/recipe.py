"""What a recipe says: stages of a run, what is trained on, at what rates, and what the losses weigh."""

from dataclasses import dataclass
from math import cos, pi
from random import Random

import torch

from mattecompress.training.rates import LayerRates, Rates


@dataclass(frozen=True)
class HighPass:
    """A second matting pass on large frames, through the refiner."""

    frames: int
    height: int
    width: int
    ratio: float


@dataclass(frozen=True)
class Routing:
    """What MEMatte's losses weigh besides the matte's own.

    distillation: weight of the distance to the teacher's features.
    compression: weight of the distance of the routed share to `share`.
    noisy: share of a stage in which routers draw with the whole noise of Gumbel-softmax; after it the noise falls to
        none at the stage's end, so that training chooses in the end as inference does.
    """

    distillation: float = 1.0
    compression: float = 1.0
    share: float = 0.25
    noisy: float = 1.0

    def noise(self, done: float) -> float:
        """Factor of the noise where that share of a stage is done, of which a step is left."""
        return min(1.0, (1 - done) / (1 - self.noisy)) if self.noisy < 1 else 1.0


@dataclass(frozen=True)
class Stage:
    """Some steps with one clip shape and one set of rates.

    frames: of a clip; 0 leaves the ordinary matting pass out, for a stage that has a high pass.
    fade: factor that the rates reach, along half a cosine, after `span` steps.
    span: a stage that hands over before its fade is done has a longer span than steps; 0 means `steps`.
    segmentation: add a segmentation pass on other clips, mask = alpha > 0.5.
    freeze_norms: begin with the running mean of the weights, measure batch-norm statistics on RECALIBRATION batches
        unless the stage before has, then hold them (the refiner's go on moving).
    bfloat16: run the networks under bfloat16 autocast; losses stay float32.
    mimicking: weight of the distance to the teacher's features, BiVM equation (21).
    evolution: weight of the squared factors of shortcuts over several layers, BiVM equation (18).
    smallest: sides of the matting pass's clips are drawn anew at each step, multiples of 16 from here up to height and
        width; 0 means they are these.
    routing: what a stage of a routed network weighs, which has a teacher.
    """

    steps: int
    batch: int
    frames: int
    height: int
    width: int
    rates: Rates | LayerRates
    fade: float = 1.0
    span: int = 0
    high: HighPass | None = None
    segmentation: bool = False
    freeze_norms: bool = False
    bfloat16: bool = True
    mimicking: float = 0.0
    evolution: float = 0.0
    smallest: int = 0
    routing: Routing | None = None

    def sides(self, seed: int, step: int) -> tuple[int, int]:
        """Height and width of the matting pass's clips at a step of the run."""
        if not self.smallest:
            return self.height, self.width
        draw = Random(f"{seed} {step}")
        height, width = (draw.randrange(self.smallest, side + 1, 16) for side in (self.height, self.width))
        return height, width

    def precision(self, device: str) -> torch.autocast:
        """The context that networks run in on a device."""
        return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=self.bfloat16)

    def factor(self, step: int) -> float:
        """What the rates are multiplied by at the stage's own `step`."""
        return self.fade + (1 - self.fade) * (1 + cos(pi * step / (self.span or self.steps))) / 2


@dataclass(frozen=True)
class Recipe:
    """Stages in order, for one model of `mattecompress.models.MODELS`.

    warmup: steps over which the rates rise from 0 at the very beginning.
    weight_decay: of AdamW; 0 makes it Adam.
    clip_norm: largest norm of the gradient; 0 leaves it as it is.
    average: decay a step of the running mean of the weights that is saved in the end; 0 saves the last weights.
    half: save the weights as float16.
    packed: save them as `mattecompress.models.packed` does: one-bit ones as bits, others as float16.
    teacher: the model whose features a stage with mimicking or routing compares with.
    coarse: weight of the loss on the coarse matte, where the network gives one.
    erosion: largest radius that the trimaps are made with, for networks that take one.
    """

    model: str
    stages: tuple[Stage, ...]
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    average: float = 0.0
    half: bool = False
    packed: bool = False
    teacher: str = ""
    coarse: float = 0.0
    erosion: int = 14

    @property
    def trained_parts(self) -> frozenset[str]:
        """The optional parts of the network that some stage trains."""
        refines = any(stage.high and stage.rates.of("refiner") for stage in self.stages)
        segments = any(stage.segmentation for stage in self.stages)
        return frozenset({"refiner"} if refines else ()) | frozenset({"project_seg"} if segments else ())

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def locate(self, step: int) -> tuple[Stage, int]:
        """The stage that `step` falls into and the step's number in it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ValueError(f"step {step} lies behind the last stage")

    def measures_norms(self, step: int) -> bool:
        """Whether batch-norm statistics are measured before `step`: it begins the first of the frozen stages."""
        stage, local = self.locate(step)
        return stage.freeze_norms and local == 0 and not (step and self.locate(step - 1)[0].freeze_norms)

    def scale(self, step: int) -> float:
        """What the stage's rates are multiplied by at `step`."""
        stage, local = self.locate(step)
        return stage.factor(local) * min(1.0, (step + 1) / max(self.warmup, 1))
