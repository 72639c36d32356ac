"""What of a program only matters where a mask is set: M * y, and all that is computed for y alone."""

import torch
from torch import fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.program import Program

aten = torch.ops.aten
matte = torch.ops.matte
RESIZES = (aten.upsample_bilinear2d.vec, matte.resize_bilinear.default, aten.slice.Tensor)
_PRODUCTS = (aten.mul.Tensor,)


def masked_nodes(program: Program) -> dict[fx.Node, fx.Node]:
    """Each node whose every use lies under one mask, and that mask at the size it is used at.

    Values that are also read elsewhere, states and outputs are not among them. A mask that has become a list of tiles
    is that list.
    """
    masks = find_masks(program)
    found: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(program.operations())):
        if node not in masks and program.facts(node).dtype is not None:
            used_under = {_mask_of_use(node, user, masks, found) for user in node.users}
            (mask,) = used_under if len(used_under) == 1 else (None,)
            if mask is not None:
                found[node] = mask
    return found


def find_masks(program: Program) -> set[fx.Node]:
    """What `SpatialMask` yields, or the comparison that it has become, at every size."""
    masks = set(program.called_modules(SpatialMask))
    masks |= {node for node in program.find(aten.where.self) if _is_zeros_and_ones(program, node)}
    for node in program.operations():
        if node.target in RESIZES and node.args[0] in masks:
            masks.add(node)
    return masks


def _is_zeros_and_ones(program: Program, node: fx.Node) -> bool:
    """One channel that is 1 where a condition holds and else 0."""
    shape, ends = program.facts(node).shape, node.args[1:]
    if len(shape) != 4 or shape[1] != 1:
        return False
    known = [program.tensor(end) for end in ends if isinstance(end, fx.Node) and end.op == "get_attr"]
    return [value.item() for value in known if value.numel() == 1] == [1, 0]


def _mask_of_use(
    node: fx.Node, user: fx.Node, masks: set[fx.Node], found: dict[fx.Node, fx.Node]
) -> fx.Node | None:
    if user.target in _PRODUCTS:
        for factor in user.all_input_nodes:
            if factor in masks and factor is not node:
                return factor
    if user.target is matte.scatter_tiles.default and user.args[0] is node:
        tiles = user.args[1]
        assert isinstance(tiles, fx.Node)
        return tiles
    return found.get(user)
