"""Training recipes by name."""

from dataclasses import replace

from mattecompress.errors import UserError
from mattecompress.options import nearest
from mattecompress.training.rates import Rates
from mattecompress.training.recipe import HighPass, Recipe, Stage
from mattecompress.training.trimap_recipes import TRIMAP_RECIPES


class RecipeError(UserError):
    """A recipe's name is unknown."""


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
    **TRIMAP_RECIPES,
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
