"""The table of models."""

import pytest

from mattecompress.models import MODELS, SHIPPED, UnknownModelError, build_model, shipped_checkpoint
from mattecompress.models.checkpoints import CheckpointError


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds(name: str) -> None:
    assert not build_model(name, untrained=True).training


def test_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownModelError, match="did you mean rvm-resnet50"):
        build_model("rvm-resnet5", untrained=True)


def test_models_without_shipped_weights_say_so() -> None:
    for name in MODELS.keys() - SHIPPED.keys():
        with pytest.raises(CheckpointError, match=f"no weights are shipped for {name}"):
            shipped_checkpoint(name)
