"""Networks to capture, by name, and the weights that ship with the package."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mattecompress.errors import UserError
from mattecompress.extras import import_part
from mattecompress.models.checkpoints import CheckpointError, load_checkpoint
from mattecompress.options import nearest

MODELS = {
    "bimatting": "bimatting:bimatting",
    "bimatting-32bit": "bimatting:bimatting_float",
    "bivm": "bimatting:bivm",
    "bivm-32bit": "bimatting:bivm_float",
    "mematte-base": "mematte:base",
    "mematte-small": "mematte:small",
    "mematte-tiny": "mematte:tiny",
    "rvm-mobilenetv3": "rvm:mobilenetv3",
    "rvm-resnet50": "rvm:resnet50",
    "vitmatte-base": "vitmatte:base",
    "vitmatte-small": "vitmatte:small",
    "vitmatte-tiny": "vitmatte:tiny",
}
ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = {"bivm": "bivm-small.safetensors", "rvm-mobilenetv3": "rvm-small.safetensors"}


class UnknownModelError(UserError):
    """No model has that name, or the model has no such option."""


def build_model(
    name: str, checkpoint: Path | None = None, untrained: bool = False, **options: Any
) -> nn.Module:
    """The network `name` in eval mode, float32, with the weights of `checkpoint` or else the shipped ones.

    With `untrained` the weights are PyTorch's initial ones (from its global random state), for those who train.
    `options` go to the model's builder, such as `refiner="fast_guided_filter"` for RVM.

    Raises:
        UnknownModelError: no such name in MODELS, or no such option.
        MissingExtraError: the extra that the model needs is not installed.
        CheckpointError: the checkpoint does not fit, or none was given and none is shipped.
    """
    builder = _find_builder(name)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise UnknownModelError(
                f"{name} has no option {option.replace('_', '-')}{nearest(option, known)}"
            )
    model = builder(**options)
    if not untrained:
        load_checkpoint(model, checkpoint or shipped_checkpoint(name), name)
    return model.eval()


def _find_builder(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise UnknownModelError(f"no model is called '{name}'{nearest(name, MODELS)}")
    module, _, builder = MODELS[name].partition(":")
    found: Callable[..., nn.Module] = getattr(import_part(f"{__name__}.{module}"), builder)
    return found


def shipped_checkpoint(name: str) -> Path:
    """The weights of model `name` in this package: our own training on procedural clips, see the .json beside them.

    Raises:
        CheckpointError: no weights are shipped for this model.
    """
    path = ASSETS / SHIPPED.get(name, "")
    if not path.is_file():
        raise CheckpointError(
            f"no weights are shipped for {name}: give a checkpoint file, or ask for untrained ones"
        )
    return path
