"""A builder that remembers for which nodes of the program each kernel is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from tvm import relax


class Builder(relax.BlockBuilder):  # type: ignore[misc]
    """Builds `main`.

    nodes: for each call of a kernel, in order, the names of the nodes whose values it computes, or steps towards them.
        They are no part of the kernels, so that kernels which compute alike stay one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[tuple[str, ...]] = []
        self.current: tuple[fx.Node, ...] = ()

    @contextmanager
    def computing(self, *nodes: fx.Node) -> Iterator[None]:
        """Within, kernels are called for these nodes."""
        before, self.current = self.current, nodes
        yield
        self.current = before

    def emit_te(self, *arguments: Any, **options: Any) -> relax.Var:
        """The result of one kernel."""
        self.nodes.append(tuple(node.name for node in self.current))
        return super().emit_te(*arguments, **options)
