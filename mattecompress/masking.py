"""What of a program only matters where a mask is set: M * y, and all that is computed for y alone."""

import torch
from torch import fx

from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.program import Program

aten = torch.ops.aten
_RESIZES = (aten.upsample_bilinear2d.vec, aten.slice.Tensor)
_PRODUCTS = (aten.mul.Tensor,)


def masked_nodes(program: Program) -> dict[fx.Node, fx.Node]:
    """Each node whose every use lies under one mask, and that mask at the size it is used at.

    Values that are also read elsewhere, states and outputs are not among them.
    """
    masks = _masks(program)
    found: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(program.operations())):
        if node not in masks and program.facts(node).dtype is not None:
            used_under = {_mask_of_use(node, user, masks, found) for user in node.users}
            (mask,) = used_under if len(used_under) == 1 else (None,)
            if mask is not None:
                found[node] = mask
    return found


def _masks(program: Program) -> set[fx.Node]:
    """What `SpatialMask` yields, at every size."""
    masks = set(program.called_modules(SpatialMask))
    for node in program.operations():
        if node.target in _RESIZES and node.args[0] in masks:
            masks.add(node)
    return masks


def _mask_of_use(
    node: fx.Node, user: fx.Node, masks: set[fx.Node], found: dict[fx.Node, fx.Node]
) -> fx.Node | None:
    if user.target in _PRODUCTS:
        for factor in user.all_input_nodes:
            if factor in masks and factor is not node:
                return factor
    return found.get(user)
