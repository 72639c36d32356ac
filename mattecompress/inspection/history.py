"""What a recording of a pipeline holds, read back: each pass with its program's text, beside the one before.

A line of the text is known by what it defines: `%conv2d`, `parameter @conv.weight`, `pass fold-batch-norm`. Lines of two
texts are set into one list, in the order of the later, what is gone behind what it followed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mattecompress.analysis.cost import Totals
from mattecompress.inspection.difference import STATUSES, Change, NodeDifference, RegionDifference
from mattecompress.inspection.recording import RecordError, read_history

TEXT, NUMBER = (str,), (int, float)
STEP: dict[str, tuple[type, ...]] = {
    "number": NUMBER,
    "pass": TEXT,
    "seconds": NUMBER,
    "modified": (bool,),
    "notes": TEXT,
    "level": TEXT,
    "nodes": NUMBER,
    "text": TEXT,
}
"""What the index says of each step besides its totals, and its types."""
_DEFINED = re.compile(r"%\S+|(?:parameter|buffer|module|scope|state|absent|pass) \S+|\w+")


@dataclass(frozen=True)
class Line:
    """A line of a program's text and what a pass did to it.

    mark: `kept`, `noted` where only its notes differ, `changed`, `replaced`, `added` or `removed`.
    gone: it is of the program before, and what is marked no longer is.
    """

    text: str
    mark: str = "kept"
    gone: bool = False


@dataclass(frozen=True)
class HistoryStep:
    """A pass that ran: the index's facts, totals where no size is open, lines, and what differs from the step before.

    The program that was given is step 0, and differs from nothing.
    """

    facts: Mapping[str, Any]
    totals: Totals | None
    lines: tuple[Line, ...]
    nodes: tuple[NodeDifference, ...] = ()
    regions: tuple[RegionDifference, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes have each status."""
        statuses = [node.status for node in self.nodes]
        return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


@dataclass(frozen=True)
class History:
    """A recording: the program's name, the pipeline's text, whether it came to its end, and its steps."""

    program: str
    pipeline: str
    finished: bool
    steps: tuple[HistoryStep, ...]

    def as_json(self) -> dict[str, Any]:
        """The index, with the counts of each step."""
        steps = [
            {**step.facts, "totals": step.totals and asdict(step.totals), "counts": step.counts}
            for step in self.steps
        ]
        return {
            "program": self.program,
            "pipeline": self.pipeline,
            "finished": self.finished,
            "steps": steps,
        }


def load_history(folder: Path) -> History:
    """Read a recording, finished or not.

    Raises:
        RecordError: the folder holds none, or a file of it is not there or damaged.
    """
    index = read_history(folder)
    steps: list[HistoryStep] = []
    before: list[str] = []
    try:
        for entry in index["steps"]:
            facts = {key: _typed(entry[key], kinds) for key, kinds in STEP.items()}
            after = _read(folder, facts["text"]).splitlines()
            difference = (
                json.loads(_read(folder, entry["difference"])) if steps else {"nodes": (), "regions": ()}
            )
            nodes, regions = map(_node, difference["nodes"]), map(_region, difference["regions"])
            totals = Totals(**_figures(entry["totals"])) if entry["totals"] is not None else None
            step = HistoryStep(facts, totals, (), tuple(nodes), tuple(regions))
            lines = merge(before if steps else after, after, step.nodes)
            steps.append(replace(step, lines=tuple(lines)))
            before = after
        names = [str(_typed(index[key], TEXT)) for key in ("program", "pipeline")]
        return History(names[0], names[1], index["finished"] is True, tuple(steps))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordError(f"{folder}: the history is damaged or not whole: record it again") from error


def merge(before: Sequence[str], after: Sequence[str], nodes: Sequence[NodeDifference]) -> Iterator[Line]:
    """The lines of two texts in one list, marked; nodes: what differs between their programs."""
    old, new = _by_definition(before), _by_definition(after)
    became = {f"%{name}": node.status for node in nodes for name in node.before}
    came = {f"%{name}": node.status for node in nodes for name in node.after}

    def gone(key: str, otherwise: str) -> Iterator[Line]:
        mark = became.get(key, "" if key.startswith("%") else otherwise)
        if mark:
            yield Line(old[key], mark, gone=True)

    places = [*old], [*new]
    for _, first, last, begin, end in SequenceMatcher(None, *places, autojunk=False).get_opcodes():
        for key in places[0][first:last]:
            if key not in new:
                yield from gone(key, "removed")
        for key in places[1][begin:end]:
            if old.get(key) == new[key]:
                yield Line(new[key], came.get(key, "kept"))
                continue
            if key in old:
                yield from gone(key, "changed")
            plain = "changed" if key in old else "added"
            yield Line(new[key], came.get(key, "noted" if key.startswith("%") else plain))


def _by_definition(lines: Sequence[str]) -> dict[str, str]:
    """Lines by what they define, numbered where several define the same."""
    found: dict[str, str] = {}
    for line in lines:
        match = _DEFINED.match(line)
        key = match[0] if match else line
        while key in found:
            key += "'"
        found[key] = line
    return found


def _read(folder: Path, name: Any) -> str:
    """A file that lies in the folder itself."""
    path = Path(_typed(name, TEXT))
    if path.name != name:
        raise ValueError(f"'{name}' is no file of the history")
    return (folder / path).read_text(encoding="utf-8")


def _node(entry: dict[str, Any]) -> NodeDifference:
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    if known["status"] not in STATUSES:
        raise ValueError(f"'{known['status']}' is no status")
    known["changes"] = tuple(Change(**change) for change in entry["changes"])
    return NodeDifference(**known)


def _region(entry: dict[str, Any]) -> RegionDifference:
    sides = {side: entry[side] and _figures(entry[side]) for side in ("before", "after")}
    return RegionDifference(**{**entry, **sides})


def _figures(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: _typed(value, NUMBER) for key, value in entry.items()}


def _typed(value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__} is no {kinds[0].__name__}")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError(f"{value} is no figure")
    return value
