"""Which nodes of one program stand for which of another, by what they compute, where they come from, and their neighbours.

Four kinds of evidence, each over the nodes that those before it have left:

1. value: the same operations on the same inputs and tensors, all the way from the inputs, whatever their names;
2. provenance: a node that a pass made names those it comes from, and one that no pass touched keeps its name. This is
   believed unless what is certainly the same bears other names;
3. place: the same operation on the same tensor, or the n-th of its kind in the same module of the network;
4. neighbours: the same operation in the same role for nodes that are aligned, forwards and backwards.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import networkx
from torch import fx

from mattecompress.facts import Facts
from mattecompress.inspection.description import Described, describe
from mattecompress.program import Program


@dataclass(frozen=True)
class Replacement:
    """Nodes that went and nodes that came in their place, by name; `maker` is the pass that made the last of these."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    maker: str


@dataclass(frozen=True)
class Alignment:
    """How the nodes of two programs, inputs among them, correspond; every node stands in just one of the four.

    kept: from the name of a node to that of the same operation in the other program.
    counterparts: for nodes of the program after, by name, the node before whose value theirs stands for: of what was
        kept, and of what was replaced where one value took the place of one.
    """

    kept: dict[str, str]
    replaced: tuple[Replacement, ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    counterparts: dict[str, str]


def align(before: Program, after: Program) -> Alignment:
    """Align two programs, whatever passes lie between them, or none."""
    return align_described(describe(before), describe(after))


def align_described(before: Described, after: Described) -> Alignment:
    """The same for programs that are described already."""
    aligner = _Aligner(before, after)
    aligner.by_value()
    aligner.by_provenance()
    aligner.by_place()
    aligner.by_neighbours()
    return aligner.result()


Label = Callable[[Described, fx.Node, fx.Node | None], Hashable]
"""Of a node that reads or is read by a second, in its program."""
Neighbours = tuple[Iterable[fx.Node], fx.Node | None]
"""Nodes that read the second, or just nodes."""


class _Aligner:
    """Pairs of nodes, and groups that took the place of groups, as far as they are known."""

    def __init__(self, before: Described, after: Described) -> None:
        self.before, self.after = before, after
        self.pairs: dict[fx.Node, fx.Node] = {}
        self.taken: set[fx.Node] = set()
        self.replaced: list[tuple[list[fx.Node], list[fx.Node]]] = []

    def by_value(self) -> None:
        """Pair what computes the same from the inputs, and inputs of the same name."""
        inputs = [{str(node.target): node for node in side.program.inputs} for side in self.sides]
        for name in inputs[0].keys() & inputs[1].keys():
            self.pair(inputs[0][name], inputs[1][name])
        values = [_values(side) for side in self.sides]
        self.pair_equal(values[0].__getitem__, values[1].__getitem__)

    def by_provenance(self) -> None:
        """Pair what no pass touched and put what passes made in the place of what it comes from."""
        certain = [(a, b) for a, b in self.pairs.items() if a.op != "placeholder"]
        if 2 * sum(_origins(self.before, a) == _origins(self.after, b) for a, b in certain) < len(certain):
            return
        graph = networkx.Graph()
        for side, nodes in zip(self.sides, self.left(), strict=True):
            graph.add_edges_from((node, name) for node in nodes for name in _origins(side, node))
        order = {node: place for side in self.sides for place, node in enumerate(side.nodes)}
        for component in networkx.connected_components(graph):
            members = sorted((node for node in component if node in order), key=order.__getitem__)
            self.place_component(
                [node for node in members if node.graph is self.before.program.graph],
                [node for node in members if node.graph is self.after.program.graph],
            )

    def place_component(self, gone: list[fx.Node], come: list[fx.Node]) -> None:
        """Pair what is the same among nodes of one origin; the rest takes the place of the rest."""
        for new in list(come):
            label = self.identity(self.after, new)
            alike = next((old for old in gone if self.identity(self.before, old) == label), None)
            if alike is not None:
                self.pair(alike, new)
                gone.remove(alike)
                come.remove(new)
        if gone and come and all(_maker(self.after, new) for new in come):
            self.replaced.append((gone, come))
            self.taken.update(gone, come)

    def by_place(self) -> None:
        """Pair what alone reads a tensor of the same content, then the n-th of a kind in the same module."""
        for labels in (_by_content, _by_scope):
            tables = [labels(side, nodes) for side, nodes in zip(self.sides, self.left(), strict=True)]
            self.pair_equal(tables[0].get, tables[1].get, unique=True)

    def by_neighbours(self) -> None:
        """Pair what plays the same role for a pair, exactly alike first; those of one role in their order."""
        outputs = [self.before.program.outputs, self.after.program.outputs]
        for label in (self.exact, self.loose):
            for name in outputs[0].keys() & outputs[1].keys():
                self.pair_roles(label, ([outputs[0][name]], None), ([outputs[1][name]], None))
            queue = deque(self.pairs.items())
            while queue:
                old, new = queue.popleft()
                queue += self.pair_roles(label, (_readers(old), old), (_readers(new), new))
                operands = self.before.operands[old], self.after.operands[new]
                for role in operands[0].keys() & operands[1].keys():
                    queue += self.pair_roles(label, ([operands[0][role]], None), ([operands[1][role]], None))

    def pair_roles(
        self, label: Label, before: Neighbours, after: Neighbours
    ) -> list[tuple[fx.Node, fx.Node]]:
        """Pair nodes of equal labels; returns the new pairs."""
        tables: list[dict[Hashable, list[fx.Node]]] = []
        for side, (nodes, source) in zip(self.sides, (before, after), strict=True):
            tables.append(defaultdict(list))
            for node in nodes:
                if node not in self.taken:
                    tables[-1][label(side, node, source)].append(node)
        found = [
            pair
            for role, old in tables[0].items()
            for pair in zip(old, tables[1].get(role, []), strict=False)
        ]
        for pair in found:
            self.pair(*pair)
        return found

    def exact(self, side: Described, node: fx.Node, source: fx.Node | None) -> Hashable:
        """Kind, role, attributes and type."""
        attributes = tuple(side.attributes[node].items())
        return self.loose(side, node, source), attributes, side.program.facts(node).type_text

    def loose(self, side: Described, node: fx.Node, source: fx.Node | None) -> Hashable:
        """Kind, role and maker."""
        roles = tuple(name for name, operand in side.operands[node].items() if operand is source)
        return side.kinds[node], roles, _maker(side, node)

    def identity(self, side: Described, node: fx.Node) -> Hashable:
        """What of a node cannot differ unless it is another: one made without a place is its maker's."""
        facts = side.program.facts(node)
        free = facts.made is not None and not facts.made.origins
        return side.kinds[node], _origins(side, node), facts.scope, _maker(side, node) if free else ""

    @property
    def sides(self) -> tuple[Described, Described]:
        return self.before, self.after

    def pair(self, old: fx.Node, new: fx.Node) -> None:
        self.pairs[old] = new
        self.taken.update((old, new))

    def left(self) -> list[list[fx.Node]]:
        """Nodes of each program that nothing is known of yet, in order."""
        return [[node for node in side.nodes if node not in self.taken] for side in self.sides]

    def pair_equal(
        self,
        before: Callable[[fx.Node], Hashable | None],
        after: Callable[[fx.Node], Hashable | None],
        unique: bool = False,
    ) -> None:
        """Pair what is left and has equal keys, in order; under `unique` only where one is one's only equal."""
        tables: list[dict[Hashable, list[fx.Node]]] = []
        for key, nodes in zip((before, after), self.left(), strict=True):
            tables.append(defaultdict(list))
            for node in nodes:
                tables[-1][key(node)].append(node)
        for key_of_both in tables[0].keys() & tables[1].keys() - {None}:
            old, new = tables[0][key_of_both], tables[1][key_of_both]
            if not unique or len(old) == len(new) == 1:
                for pair in zip(old, new, strict=False):
                    self.pair(*pair)

    def result(self) -> Alignment:
        """Everything by name, in the order of the programs."""
        removed, added = self.left()
        counterparts = {new: old for old, new in self.pairs.items()}
        for gone, come in self.replaced:
            counterparts |= self.successors(gone, come)
        return Alignment(
            {old.name: self.pairs[old].name for old in self.before.nodes if old in self.pairs},
            tuple(
                Replacement(_names(gone), _names(come), _maker(self.after, come[-1]))
                for gone, come in self.replaced
            ),
            _names(removed),
            _names(added),
            {new.name: counterparts[new].name for new in self.after.nodes if new in counterparts},
        )

    def successors(self, gone: list[fx.Node], come: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        """The one new value that is read outside of its group in the place of the one old value that was."""
        old, new = ([node for node in nodes if node.users.keys() - set(nodes)] for nodes in (gone, come))
        if len(old) != 1:
            return {}
        facts = self.before.program.facts(old[0])
        like = [node for node in new if _same_quantity(facts, self.after.program.facts(node))]
        return {like[-1]: old[0]} if like else {}


def _same_quantity(old: Facts, new: Facts) -> bool:
    """Whether one value can stand for another: of the same shape and type, or both of floating point."""
    floating = [facts.dtype is not None and facts.dtype.is_floating_point for facts in (old, new)]
    return old.shape == new.shape and (old.dtype == new.dtype or all(floating))


def _values(side: Described) -> dict[fx.Node, str]:
    """A digest of what each node computes from the inputs."""
    values: dict[fx.Node, str] = {}
    for node in side.nodes:
        parts = (
            side.kinds[node],
            node.target if node.op == "placeholder" else "",
            sorted(side.attributes[node].items()),
            sorted(side.content(node).items()),
            sorted((name, values[operand]) for name, operand in side.operands[node].items()),
        )
        values[node] = hashlib.sha256(repr(parts).encode()).hexdigest()
    return values


def _origins(side: Described, node: fx.Node) -> tuple[str, ...]:
    made = side.program.facts(node).made
    return (made.origins if made else ()) or (node.name,)


def _maker(side: Described, node: fx.Node) -> str:
    made = side.program.facts(node).made
    return made.maker if made else ""


def _by_content(side: Described, nodes: Iterable[fx.Node]) -> dict[fx.Node, Hashable]:
    return {
        node: (side.kinds[node], *sorted(side.content(node).items())) for node in nodes if side.tensors[node]
    }


def _by_scope(side: Described, nodes: Iterable[fx.Node]) -> dict[fx.Node, Hashable]:
    counts: dict[Hashable, int] = defaultdict(int)
    found: dict[fx.Node, Hashable] = {}
    for node in nodes:
        scope = side.program.facts(node).scope
        if scope:
            label = (scope, side.kinds[node], _maker(side, node))
            found[node] = (*label, counts[label])
            counts[label] += 1
    return found


def _readers(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.op != "output"]


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)
