"""What differs between two programs, node by node and region by region, and what that costs or saves."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, fx

from mattecompress.analysis.cost import Cost, NodeCost, cost
from mattecompress.analysis.propagation import program_symbols
from mattecompress.facts import Facts
from mattecompress.inspection.alignment import Alignment, align_described
from mattecompress.inspection.description import Described, describe, short_kind
from mattecompress.program import Program, fetch_tensor

Status = Literal["changed", "replaced", "added", "removed"]
STATUSES: tuple[Status, ...] = ("changed", "replaced", "added", "removed")
SIGNS = {"kept": "=", "changed": "~", "replaced": ">", "added": "+", "removed": "-"}
COSTS = ("macs", "binary_macs", "paper_flops", "weight_bits", "activation_bytes")


@dataclass(frozen=True)
class Change:
    """One thing that a kept operation does otherwise: an argument, its type, precision, an operand or a tensor.

    distance: of a tensor, the norm of the difference as a share of the norm before; None where shapes differ.
    """

    what: str
    before: str
    after: str
    distance: float | None = None


@dataclass(frozen=True)
class NodeDifference:
    """Nodes of one or both programs that differ, by name.

    region: of the program after, or of the one before for what was removed; empty where there is none.
    maker: the pass that made what came; empty where no pass is known.
    kinds_before, kinds_after: their operations, without `aten.`, in the order of the names.
    """

    status: Status
    region: str
    maker: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    kinds_before: tuple[str, ...]
    kinds_after: tuple[str, ...]
    changes: tuple[Change, ...] = ()


DIFFERENCE_FIELDS: dict[str, type] = dict.fromkeys(
    ("status", "region", "maker", "before", "after", "what"), str
)
"""What can be asked of nodes that differ."""


def row_of(node: NodeDifference) -> dict[str, Any]:
    """A difference in the fields that can be asked for; names and operations of several nodes in one text."""
    return {
        "status": node.status,
        "region": node.region,
        "maker": node.maker,
        "before": " ".join((*node.before, *node.kinds_before)),
        "after": " ".join((*node.after, *node.kinds_after)),
        "what": " ".join(change.what for change in node.changes),
    }


@dataclass(frozen=True)
class RegionDifference:
    """Nodes of a region by what became of them, and its costs before and after; None where a size is open."""

    region: str
    kept: int
    changed: int
    replaced: int
    added: int
    removed: int
    before: dict[str, float] | None
    after: dict[str, float] | None


@dataclass(frozen=True)
class Difference:
    """All that differs; `nodes` and `passes` are empty between a program and a copy of it.

    passes: that ran on the program after and not on the one before.
    totals_before, totals_after: as `mattecompress.analysis.cost.Totals`; None where a size is open.
    """

    before: str
    after: str
    passes: tuple[str, ...]
    kept: int
    nodes: tuple[NodeDifference, ...]
    regions: tuple[RegionDifference, ...]
    totals_before: dict[str, float] | None
    totals_after: dict[str, float] | None
    alignment: Alignment

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def diff(before: Program, after: Program) -> Difference:
    """Compare two programs, of whatever levels and sizes."""
    sides = describe(before), describe(after)
    alignment = align_described(*sides)
    nodes = tuple(_Comparison(*sides, alignment).differences())
    known = [None if program_symbols(side.program) else cost(side.program) for side in sides]
    totals = [asdict(each.totals) if each else None for each in known]
    return Difference(
        before.name,
        after.name,
        tuple(_passes_since(before, after)),
        len(alignment.kept) - sum(node.status == "changed" for node in nodes),
        nodes,
        tuple(_by_region(sides, alignment, nodes, known)),
        totals[0],
        totals[1],
        alignment,
    )


def _passes_since(before: Program, after: Program) -> Iterator[str]:
    """The passes of the program after, less as many of each as the one before has."""
    done = Counter(record.text for record in before.history)
    for record in after.history:
        done[record.text] -= 1
        if done[record.text] < 0:
            yield record.text


class _Comparison:
    """Goes through an alignment in the order of the program after, what was removed last."""

    def __init__(self, before: Described, after: Described, alignment: Alignment) -> None:
        self.before, self.after, self.alignment = before, after, alignment
        self.old = {node.name: node for node in before.nodes}
        self.new = {node.name: node for node in after.nodes}

    def differences(self) -> Iterator[NodeDifference]:
        places = {name: place for place, name in enumerate(self.new)}
        found = [
            *self.changed(),
            *self.replaced(),
            *(self.entry("added", (), (name,)) for name in self.alignment.added),
        ]
        yield from sorted(found, key=lambda each: places[each.after[0]])
        for name in self.alignment.removed:
            yield self.entry("removed", (name,), ())

    def replaced(self) -> Iterator[NodeDifference]:
        for each in self.alignment.replaced:
            old = [self.before.program.facts(self.old[name]) for name in each.before]
            new = [self.after.program.facts(self.new[name]) for name in each.after]
            yield self.entry("replaced", each.before, each.after, tuple(_precision_change(old, new)))

    def changed(self) -> Iterator[NodeDifference]:
        for old, new in self.alignment.kept.items():
            changes = tuple(self.changes(self.old[old], self.new[new]))
            if changes:
                yield self.entry("changed", (old,), (new,), changes)

    def entry(
        self, status: Status, old: tuple[str, ...], new: tuple[str, ...], changes: tuple[Change, ...] = ()
    ) -> NodeDifference:
        side, nodes = (
            (self.after, [self.new[name] for name in new])
            if new
            else (self.before, [self.old[name] for name in old])
        )
        facts = [side.program.facts(node) for node in nodes]
        made = facts[-1].made
        return NodeDifference(
            status,
            next((each.region for each in facts if each.region), ""),
            made.maker if new and made else "",
            old,
            new,
            tuple(short_kind(self.before.kinds[self.old[name]]) for name in old),
            tuple(short_kind(self.after.kinds[self.new[name]]) for name in new),
            changes,
        )

    def changes(self, old: fx.Node, new: fx.Node) -> Iterator[Change]:
        """What a kept operation does otherwise."""
        facts = self.before.program.facts(old), self.after.program.facts(new)
        if not _same_type(*facts):
            yield Change("type", facts[0].type_text, facts[1].type_text)
        yield from _precision_change(facts[:1], facts[1:])
        attributes = self.before.attributes[old], self.after.attributes[new]
        for name in dict.fromkeys([*attributes[0], *attributes[1]]):
            if attributes[0].get(name) != attributes[1].get(name):
                yield Change(name, *_both(each.get(name, "default") for each in attributes))
        operands = self.before.operands[old], self.after.operands[new]
        for name in dict.fromkeys([*operands[0], *operands[1]]):
            read = operands[0].get(name), operands[1].get(name)
            known = read[1] is not None and self.alignment.counterparts.get(read[1].name)
            if known != (read[0].name if read[0] else None):
                yield Change(name, *_both(f"%{each.name}" if each else "none" for each in read))
        yield from self.changed_tensors(old, new)

    def changed_tensors(self, old: fx.Node, new: fx.Node) -> Iterator[Change]:
        names = self.before.tensors[old], self.after.tensors[new]
        content = self.before.content(old), self.after.content(new)
        for role in dict.fromkeys([*names[0], *names[1]]):
            if content[0].get(role) == content[1].get(role):
                continue
            if role in names[0] and role in names[1]:
                tensors = (
                    fetch_tensor(self.before.program.graph_module, names[0][role]),
                    fetch_tensor(self.after.program.graph_module, names[1][role]),
                )
                yield Change(role, content[0][role], content[1][role], distance(*tensors))
            else:
                yield Change(role, *_both(f"@{each[role]}" if role in each else "none" for each in names))


def _both(texts: Iterable[str]) -> tuple[str, str]:
    before, after = texts
    return before, after


def distance(before: Tensor, after: Tensor) -> float | None:
    """The norm of the difference as a share of the norm before, or of 1 where that is 0; None where shapes differ."""
    if before.shape != after.shape:
        return None
    old, new = before.detach().double(), after.detach().double()
    return float((new - old).norm()) / (float(old.norm()) or 1.0)


def _precision_change(old: Iterable[Facts], new: Iterable[Facts]) -> Iterator[Change]:
    """Of the first of each that have one."""
    before, after = (
        next((str(each.precision) for each in facts if each.precision), "float") for facts in (old, new)
    )
    if before != after:
        yield Change("precision", before, after)


def _same_type(old: Facts, new: Facts) -> bool:
    """Whether types agree; an open size agrees with any."""
    return (
        old.dtype == new.dtype
        and len(old.shape) == len(new.shape)
        and all(
            a == b or isinstance(a, str) != isinstance(b, str)
            for a, b in zip(old.shape, new.shape, strict=True)
        )
    )


def _by_region(
    sides: tuple[Described, Described],
    alignment: Alignment,
    nodes: Iterable[NodeDifference],
    costs: list[Cost | None],
) -> Iterator[RegionDifference]:
    """Regions in the order of the program after, then those that only the one before has."""
    region = {node.name: sides[1].program.facts(node).region or "" for node in sides[1].nodes}
    old_region = {node.name: sides[0].program.facts(node).region or "" for node in sides[0].nodes}
    old_region |= {old: region[new] for old, new in alignment.kept.items()}
    for each in alignment.replaced:
        old_region |= dict.fromkeys(each.before, region[each.after[-1]])
    counts = {status: Counter(each.region for each in nodes if each.status == status) for status in STATUSES}
    kept = Counter(region[name] for name in alignment.kept.values())
    sums = [
        None if known is None else _sums(known.nodes, regions)
        for known, regions in zip(costs, (old_region, region), strict=True)
    ]
    for name in dict.fromkeys([*region.values(), *old_region.values()]):
        before, after = (None if each is None else each.get(name, dict.fromkeys(COSTS, 0.0)) for each in sums)
        changed, replaced, added, removed = (counts[status][name] for status in STATUSES)
        yield RegionDifference(name, kept[name] - changed, changed, replaced, added, removed, before, after)


def _sums(nodes: Iterable[NodeCost], regions: dict[str, str]) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    for node in nodes:
        row = sums.setdefault(regions[node.name], dict.fromkeys(COSTS, 0.0))
        for key in COSTS:
            row[key] += getattr(node, key)
    return sums
