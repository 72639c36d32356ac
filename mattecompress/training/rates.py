"""Learning rates: by part of a network, or falling layer by layer as transformers are tuned."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

PARTS = ("backbone", "aspp", "refiner")


@dataclass(frozen=True)
class Rates:
    """Learning rates by part of the network; 0 leaves a part as it is."""

    backbone: float
    aspp: float
    decoder: float
    refiner: float = 0.0

    def of(self, part: str) -> float:
        """The rate of a part."""
        rate: float = getattr(self, part)
        return rate

    def part(self, name: str) -> str:
        """The part that a parameter belongs to."""
        return part_of(name)

    def decays(self, owner: nn.Module, name: str) -> bool:
        """Whether weight decay is for a parameter: for all."""
        return True


@dataclass(frozen=True)
class LayerRates:
    """A rate that is multiplied by `decay` from each of a vision transformer's layers to the one before.

    The embeddings are layer 0 and block i is layer i + 1; whatever comes after the blocks, their convolutions and
    their routers have `top` itself. Norms and position embeddings have no weight decay.

    Source: ViTMatte and MEMatte, after Li et al., "Exploring Plain Vision Transformer Backbones", 2022.
    """

    top: float
    decay: float
    blocks: int

    def of(self, part: str) -> float:
        """The rate of a layer, `layer0` and on."""
        below = self.blocks + 1 - int(part.removeprefix("layer"))
        return self.top * self.decay**below

    def part(self, name: str) -> str:
        """The layer that a parameter belongs to."""
        block = re.search(r"\.layer\.(\d+)\.", name)
        if block and ".residual." not in name and ".router." not in name:
            return f"layer{int(block[1]) + 1}"
        return "layer0" if ".embeddings." in name else f"layer{self.blocks + 1}"

    def decays(self, owner: nn.Module, name: str) -> bool:
        """Whether weight decay is for a parameter of `owner`."""
        return "Norm" not in type(owner).__name__ and not name.endswith("position_embeddings")


def parameter_groups(module: nn.Module, rates: Rates | LayerRates, decay: float) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer, each with its `part` and weight decay; their rates are still 0."""
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for owner, name, parameter in _owned(module):
        key = (rates.part(name), rates.decays(owner, name))
        empty = {"params": [], "part": key[0], "lr": 0.0, "weight_decay": decay * key[1]}
        groups.setdefault(key, empty)["params"].append(parameter)
    return list(groups.values())


def _owned(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        yield module.get_submodule(name.rpartition(".")[0]), name, parameter


def part_of(name: str) -> str:
    """The part of a clip network that a tensor belongs to: one of PARTS, else the decoder."""
    part = name.partition(".")[0]
    return part if part in PARTS else "decoder"
