"""Where nodes come from: written into their facts around every pass, so that no pass has to.

A new node comes from those whose facts it was given, and from those whose readers it took over and that are gone.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from torch import fx

from mattecompress.facts import Facts, Provenance
from mattecompress.program import Program


class Tracing:
    """Watches a program while a pass changes it: `with Tracing(program, maker)`.

    Within, each node that was not made from others names itself as its origin, so that a node that gets its facts, or
    a variation of them, inherits it. `write` puts the facts of what stood before back and says of each new node what
    made it.
    """

    def __init__(self, program: Program, maker: str) -> None:
        self.program = program
        self.maker = maker
        self.known = {node: program.facts(node).made for node in _values(program)}
        self.origins = {node: origins(node) for node in self.known}
        self.followed: dict[str, dict[fx.Node, None]] = {}
        self.follow = _follower(program.graph, self.followed)

    def __enter__(self) -> Self:
        for node, origins in self.origins.items():
            node.meta["facts"] = self.program.facts(node).but(made=Provenance(self.maker, origins))
        self.program.graph_module._register_replace_node_hook(self.follow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.graph_module._unregister_replace_node_hook(self.follow)

    def write(self) -> None:
        """Bring the facts of every node up to date, once dead ones are gone."""
        standing = _values(self.program)
        for node in standing:
            made = self.known[node] if node in self.known else self._made(node, set(standing))
            node.meta["facts"] = _facts(node).but(made=made)

    def _made(self, node: fx.Node, standing: set[fx.Node]) -> Provenance:
        given = _facts(node).made
        gone = [old for old in self._replaced(node.name) if old not in standing]
        replaced = [name for old in gone for name in self.origins[old]]
        return Provenance(self.maker, tuple(dict.fromkeys([*(given.origins if given else ()), *replaced])))

    def _replaced(self, name: str) -> list[fx.Node]:
        """The nodes known before whose place one took, directly or through others that the pass made and removed."""
        found: list[fx.Node] = []
        names = [name]
        while names:
            for old in self.followed.pop(names.pop(), {}):
                if old in self.known:
                    found.append(old)
                else:
                    names.append(old.name)
        return found


def origins(*nodes: fx.Node) -> tuple[str, ...]:
    """Names of the nodes that some come from: their own where no pass made them from another."""
    found = [name for node in nodes for name in _own_origins(_facts(node)) or (node.name,)]
    return tuple(dict.fromkeys(found))


def _own_origins(facts: Facts) -> tuple[str, ...]:
    return facts.made.origins if facts.made else ()


def _follower(graph: fx.Graph, followed: dict[str, dict[fx.Node, None]]) -> Callable[..., None]:
    """What fx calls when a reader of `old` is given the node of the name `new`.

    A function, which copies of the program keep as it is, where a method would be copied with all that it holds.
    """

    def follow(old: fx.Node, new: str, user: fx.Node) -> None:
        if old.graph is graph:
            followed.setdefault(new, {})[old] = None

    return follow


def _facts(node: fx.Node) -> Facts:
    """Those of a node that a pass may have left without, for propagation to fill in."""
    facts: Facts = node.meta.get("facts", Facts((), None))
    return facts


def _values(program: Program) -> list[fx.Node]:
    """Nodes that are given or computed."""
    return [node for node in program.graph.nodes if node.op not in ("get_attr", "output")]
