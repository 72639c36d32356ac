"""What the matting pass of a step minimizes: the matte's loss, and what else its recipe and stage weigh."""

from torch import Tensor, nn

from mattecompress.losses import evolution_loss, matting_loss, mimicking_loss
from mattecompress.training.batches import Batch
from mattecompress.training.network import Answer, resized
from mattecompress.training.recipes import Recipe, Stage
from mattecompress.training.state import TrainingError

COARSE_LEVELS = 1


def clip_loss(
    recipe: Recipe, stage: Stage, batch: Batch, answer: Answer, taught: tuple[Tensor, ...], module: nn.Module
) -> Tensor:
    """A scalar: matting loss, and by weight that of the coarse matte, mimicking and evolution.

    taught: the teacher's features in a stage with mimicking.
    module: the network's, whose factors evolution looks at.

    Raises:
        TrainingError: the network shows no features, or has no factors, for a stage that weighs them.
    """
    total = matting_loss(answer.foreground, answer.alpha, batch.foreground, batch.alpha)["total"]
    if recipe.coarse and answer.coarse is not None:
        foreground, alpha = (resized(clip, answer.coarse[0]) for clip in (batch.foreground, batch.alpha))
        coarse = matting_loss(*answer.coarse, foreground, alpha, levels=COARSE_LEVELS)["total"]
        total = total + recipe.coarse * coarse
    if stage.mimicking:
        if not answer.features:
            raise TrainingError("the network shows no features to mimic: tap them with attach-mimicking")
        total = total + stage.mimicking * mimicking_loss(answer.features, taught, answer.mask)
    if stage.evolution:
        factors = crossing_factors(module)
        if not factors:
            raise TrainingError(
                "the network has no elastic shortcuts over groups: give it a recipe without evolution"
            )
        total = total + stage.evolution * evolution_loss(factors)
    return total


def crossing_factors(module: nn.Module) -> list[nn.Parameter]:
    """Factors of the elastic shortcuts that lead over several layers of an encoder's group."""
    named = module.named_parameters()
    return [factor for name, factor in named if ".joins." in name and name.endswith(".factor")]
