"""What a program computes only in places: where its masks are set and which tokens its routers send to attention.

A decision is a map of a frame: of a mask (`mattecompress.binarization.masking`) the positions where it is not 0, of a
router the tokens that `mattecompress.modules.routed_attention` lets attend. Its density is the share of them. A node's
density is that of the mask it lies under, at the size and in the tiles that it is computed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.binarization.masking import RESIZES, masked_nodes
from mattecompress.errors import UserError
from mattecompress.interface import Clip
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.program import Program
from mattecompress.running.feed import Feed
from mattecompress.running.watching import watch

DERIVED = (*RESIZES, torch.ops.aten.max_pool2d.default, torch.ops.matte.mask_tiles.default)
"""What a mask of one size is made another of, and its tiles."""
Kind = Literal["mask", "router"]


class NoDecisionError(UserError):
    """A program computes everything everywhere."""


@dataclass(frozen=True)
class Decision:
    """What one node chose on each frame.

    region: its module where there is none. maps: (T,h,w) bool.
    """

    node: str
    kind: Kind
    region: str
    maps: Tensor

    @property
    def densities(self) -> list[float]:
        """Of each frame, the share that is chosen."""
        shares: list[float] = self.maps.flatten(1).double().mean(1).tolist()
        return shares

    @property
    def density(self) -> float:
        """The mean over frames."""
        return sum(self.densities) / len(self.densities)

    def as_json(self) -> dict[str, Any]:
        """Figures, without the maps."""
        return {
            "node": self.node,
            "kind": self.kind,
            "region": self.region,
            "size": list(self.maps.shape[1:]),
            "density": self.density,
            "by_frame": self.densities,
        }


@dataclass(frozen=True)
class Decisions:
    """What a program chose while clips ran.

    frames: (T,3,H,W), that were shown to it. decisions: of each mask and router, in order, on these frames.
    densities: of each node that is computed only in places, by name.
    """

    frames: Tensor
    decisions: tuple[Decision, ...]
    densities: Mapping[str, float]


@torch.no_grad()
def record_decisions(program: Program, clip: Clip) -> Decisions:
    """Run a clip through a program, states carried, and keep what it chooses.

    program: of fixed size. clip: (T,3,H,W) float32 in 0..1, or as `mattecompress.running.feed.Feed` takes it.

    Raises:
        CalibrationError: the clip does not fit.
        NoDecisionError: the program has neither masks nor routers.
    """
    under = masked_nodes(program)
    masks = {*program.called_modules(SpatialMask), *map(_made_from, under.values())}
    routers = {_scores(call): call for call in program.called_modules(RoutedAttention)}
    routers |= {node: node for node in program.find(torch.ops.matte.choose_tokens.default)}
    if not (masks or routers):
        raise NoDecisionError(
            f"{program.name} has neither masks nor routers: it computes everything everywhere"
        )
    seen: dict[fx.Node, list[Tensor]] = {node: [] for node in (*masks, *routers, *under.values())}

    def look(node: fx.Node, value: Tensor) -> None:
        if node in routers:
            seen[node].append(_attending(program, routers[node], value))
        elif node in seen:
            seen[node].append(_active(node, value))

    feed = Feed(program, [clip])
    watch(feed, look)
    found = [_decision(program, node, "mask", seen[node]) for node in masks]
    found += [_decision(program, call, "router", seen[scores]) for scores, call in routers.items()]
    places = {node.name: place for place, node in enumerate(program.operations())}
    shares = {node: float(torch.stack(maps).double().mean()) for node, maps in seen.items()}
    densities = {node.name: shares[mask] for node, mask in under.items()}
    densities |= {each.node: each.density for each in found}
    frames = next(iter(feed.clips[0].values()))
    return Decisions(frames, tuple(sorted(found, key=lambda each: places[each.node])), densities)


def _scores(call: fx.Node) -> fx.Node:
    scores = call.args[2]
    assert isinstance(scores, fx.Node)
    return scores


def _made_from(mask: fx.Node) -> fx.Node:
    """The mask that one was resized or widened from, or that a list of tiles is of."""
    while mask.target in DERIVED:
        (mask,) = mask.all_input_nodes
    return mask


def _active(node: fx.Node, value: Tensor) -> Tensor:
    """(h,w) of a mask; of a list of tiles, as `mattecompress.ops.masked` describes it, (K,)."""
    if node.target is torch.ops.matte.mask_tiles.default:
        return value[1 + (len(value) - 1) // 2 :] >= 0
    return value[0, 0] != 0


def _attending(program: Program, router: fx.Node, value: Tensor) -> Tensor:
    """(h,w) of the scores that routed attention reads, or of the places that were chosen by them."""
    if router.op == "call_module":
        module: Any = program.module(router)
        chosen: Tensor = module.chosen(value)[0]
        return chosen
    margin = router.args[0]
    assert isinstance(margin, fx.Node)
    tokens = torch.zeros(program.facts(margin).sizes[1], dtype=torch.bool)
    tokens[value[0][value[0] >= 0].long()] = True
    while len(program.facts(margin).shape) == 2 and len(margin.all_input_nodes) == 1:
        (margin,) = margin.all_input_nodes
    return tokens.view(program.facts(margin).sizes[1:])


def _decision(program: Program, node: fx.Node, kind: Kind, maps: list[Tensor]) -> Decision:
    facts = program.facts(node)
    return Decision(node.name, kind, facts.region or facts.scope, torch.stack(maps))
