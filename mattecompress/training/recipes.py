"""Training recipes: what is trained, on what clips, at what rates, in which stages."""

from dataclasses import dataclass, replace
from math import cos, pi
from random import Random

from mattecompress.errors import UserError
from mattecompress.options import nearest


class RecipeError(UserError):
    """A recipe's name is unknown."""


@dataclass(frozen=True)
class Rates:
    """Learning rates by part of the network; 0 leaves a part as it is."""

    backbone: float
    aspp: float
    decoder: float
    refiner: float = 0.0


@dataclass(frozen=True)
class HighPass:
    """A second matting pass on large frames, through the refiner."""

    frames: int
    height: int
    width: int
    ratio: float


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
    """

    steps: int
    batch: int
    frames: int
    height: int
    width: int
    rates: Rates
    fade: float = 1.0
    span: int = 0
    high: HighPass | None = None
    segmentation: bool = False
    freeze_norms: bool = False
    bfloat16: bool = True
    mimicking: float = 0.0
    evolution: float = 0.0
    smallest: int = 0

    def sides(self, seed: int, step: int) -> tuple[int, int]:
        """Height and width of the matting pass's clips at a step of the run."""
        if not self.smallest:
            return self.height, self.width
        draw = Random(f"{seed} {step}")
        height, width = (draw.randrange(self.smallest, side + 1, 16) for side in (self.height, self.width))
        return height, width

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
    teacher: the model whose features a stage with mimicking compares with.
    coarse: weight of the loss on the coarse matte, where the network gives one.
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

    @property
    def trained_parts(self) -> frozenset[str]:
        """The optional parts of the network that some stage trains."""
        refines = any(stage.high and stage.rates.refiner for stage in self.stages)
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


HIGH = HighPass(6, 2048, 2048, 0.25)
BIVM_STAGES = (
    Stage(20000, 1, 15, 512, 512, Rates(1e-4, 2e-4, 2e-4), segmentation=True, bfloat16=False, smallest=256),
    Stage(2000, 1, 20, 512, 512, Rates(5e-5, 1e-4, 1e-4), segmentation=True, bfloat16=False),
    Stage(1000, 1, 40, 512, 512, Rates(1e-5, 1e-5, 1e-5, 2e-4), high=HIGH, segmentation=True, bfloat16=False),
    Stage(5000, 1, 20, 512, 512, Rates(1e-5, 1e-5, 5e-5, 2e-4), high=HIGH, segmentation=True, bfloat16=False),
)
SMALL_STAGES = (
    Stage(1100, 8, 1, 96, 160, Rates(1e-3, 1e-3, 1e-3), fade=0.3, bfloat16=False),
    Stage(300, 2, 4, 96, 160, Rates(3e-4, 3e-4, 3e-4), fade=0.7, bfloat16=False),
    Stage(150, 2, 4, 144, 256, Rates(2e-4, 2e-4, 2e-4), fade=0.1, bfloat16=False),
)


def mimicking(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages with BiVM's weights of mimicking and evolution in the first."""
    first, *others = stages
    return (replace(first, mimicking=1e-4, evolution=1e-4), *others)


RECIPES = {
    "bivm": Recipe(
        model="bivm", stages=mimicking(BIVM_STAGES), packed=True, teacher="bivm-32bit", coarse=0.25
    ),
    "bivm-32bit": Recipe(model="bivm-32bit", stages=BIVM_STAGES, coarse=0.25),
    "bivm-small": Recipe(
        model="bivm",
        stages=mimicking(SMALL_STAGES),
        warmup=50,
        clip_norm=1.0,
        average=0.99,
        packed=True,
        teacher="bivm-32bit",
        coarse=0.25,
    ),
    "bivm-32bit-small": Recipe(
        model="bivm-32bit",
        stages=(
            Stage(1000, 8, 1, 96, 160, Rates(1e-3, 1e-3, 1e-3), fade=0.2, bfloat16=False),
            Stage(300, 2, 4, 144, 256, Rates(2e-4, 2e-4, 2e-4), fade=0.1, bfloat16=False),
        ),
        warmup=50,
        clip_norm=1.0,
        average=0.99,
        coarse=0.25,
    ),
    "rvm": Recipe(
        model="rvm-mobilenetv3",
        stages=(
            Stage(20000, 1, 15, 512, 512, Rates(1e-4, 2e-4, 2e-4), segmentation=True),
            Stage(2000, 1, 50, 512, 512, Rates(5e-5, 1e-4, 1e-4), segmentation=True),
            Stage(
                1000,
                1,
                40,
                512,
                512,
                Rates(1e-5, 1e-5, 1e-5, 2e-4),
                high=HIGH,
                segmentation=True,
            ),
            Stage(
                5000,
                1,
                40,
                512,
                512,
                Rates(1e-5, 1e-5, 5e-5, 2e-4),
                high=HIGH,
                segmentation=True,
            ),
        ),
    ),
    "rvm-small": Recipe(
        model="rvm-mobilenetv3",
        stages=(
            Stage(750, 8, 1, 96, 160, Rates(2e-3, 2e-3, 2e-3), fade=0.5, span=2200),
            Stage(500, 8, 1, 96, 160, Rates(1.2e-3, 1.2e-3, 1.2e-3), fade=0.4),
            Stage(360, 2, 4, 144, 256, Rates(5e-4, 5e-4, 5e-4), fade=0.05),
            Stage(230, 1, 8, 144, 256, Rates(2.5e-4, 2.5e-4, 2.5e-4), fade=0.04, freeze_norms=True),
            Stage(
                120,
                1,
                0,
                144,
                256,
                Rates(0, 0, 0, 3e-3),
                fade=0.1,
                high=HighPass(2, 288, 512, 0.5),
                freeze_norms=True,
                bfloat16=False,
            ),
        ),
        warmup=50,
        weight_decay=1e-2,
        clip_norm=1.0,
        average=0.99,
        half=True,
    ),
    "rvm-small-more": Recipe(
        model="rvm-mobilenetv3",
        stages=(
            Stage(1400, 8, 1, 144, 256, Rates(1e-3, 1e-3, 1e-3), fade=0.2),
            Stage(360, 2, 4, 144, 256, Rates(4e-4, 4e-4, 4e-4), fade=0.05),
            Stage(60, 1, 8, 144, 256, Rates(5e-5, 5e-5, 5e-5), fade=0.2, freeze_norms=True),
        ),
        warmup=50,
        weight_decay=1e-2,
        clip_norm=1.0,
        average=0.99,
        half=True,
    ),
}
"""`rvm` follows the four stages of Lin et al. 2021, section 5.1, with 1000 steps for each epoch, from random weights and
on procedural clips unless others are given. `rvm-small` is our own, sized for one CPU core; `rvm-small-more` goes on
from its weights and made those that are shipped.

`bivm` follows Xu et al. 2025, section 4, in the same way, with BiMatting's lengths and rates where the paper's are lost in
our copy, and after no pretraining: the evolution regulariser, which belongs to that, stands in the first stage. Its
teacher is trained by `bivm-32bit`, the same stages without mimicking. `bivm-small` has the paper's weights of the losses
at the lengths and sizes of an hour on a CPU; its rates are ours, about ten times the paper's, with which the loss has
hardly begun to fall by then. `bivm-32bit-small` is the recipe of its teacher, our own."""


def find_recipe(name: str) -> Recipe:
    """The recipe `name`.

    Raises:
        RecipeError: no such name in RECIPES.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe is called '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name]
