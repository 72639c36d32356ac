"""Arguments of a convolution that may be left out or given by name."""

from torch import fx

BIAS, GROUPS = 2, 6


def bias_of(node: fx.Node) -> fx.Node | None:
    """What holds a convolution's bias, if it has one."""
    bias = node.args[BIAS] if len(node.args) > BIAS else node.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def groups_of(node: fx.Node) -> int:
    """How many groups the channels of a convolution fall into."""
    groups = node.args[GROUPS] if len(node.args) > GROUPS else node.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups
