"""How long the nodes of a program take on this machine, and how long they would at least.

Compiled kernels compute several nodes each, so that time belongs to a kernel. It stands at the kernel's leading node,
that with most multiply-accumulates; the others name that one, so that sums are right. A program that is not lowered
is lowered first, and what kernels compute led back to its nodes by name, or by what the passes made them from.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from mattecompress.analysis.cost import cost
from mattecompress.backends import load_backend
from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.inspection.decisions import NoDecisionError, record_decisions
from mattecompress.interface import Clip
from mattecompress.preparation import lower, require_fixed_size
from mattecompress.program import Program
from mattecompress.provenance import origins
from mattecompress.text import print_program

if TYPE_CHECKING:
    from mattecompress.backends.tvm.profile import Kernel, Profile

FORMAT = "mattecompress-times-1"
NOISY_FRAMES = 2


class TimesError(UserError):
    """A file of times is absent, damaged, or of another program."""


@dataclass(frozen=True)
class KernelTime:
    """One call of a kernel in a frame.

    ms: median milliseconds; limit_ms: what it would take at least, and of_limit the share that this is of `ms`.
    bound: what it would wait for then, `arithmetic` or `memory`. arithmetic: of its `products`; None where it has none.
    bytes: of its operands and results. nodes: of the program it is timed for, the leading one first; region: of that
        one, its module where there is none.
    """

    name: str
    ms: float
    limit_ms: float
    of_limit: float
    bound: str
    arithmetic: str | None
    products: int
    bytes: int
    nodes: tuple[str, ...]
    region: str


@dataclass(frozen=True)
class FrameTimes:
    """A frame on this machine, one thread: medians of runs.

    digest: of the program's text. frame_ms: of the whole frame as it is deployed. kernels: in the order of their calls.
    products: of each arithmetic, a second, that this machine computes at most; bytes: that it copies, by size.
    densities: whether what masks let through was measured; else masked nodes count whole.
    """

    program: str
    digest: str
    runs: int
    frame_ms: float
    densities: bool
    products: Mapping[str, float]
    bytes: Mapping[int, float]
    kernels: tuple[KernelTime, ...]

    @property
    def kernels_ms(self) -> float:
        """Of all kernels."""
        return sum(kernel.ms for kernel in self.kernels)

    def as_json(self) -> dict[str, Any]:
        """The document that `bench --nodes --json` prints and `bench --times` writes."""
        return {"format": FORMAT, "threads": 1, "kernels_ms": self.kernels_ms, **asdict(self)}


@dataclass(frozen=True)
class NodeTime:
    """What the kernels take that a node leads, None where it leads none; time_at: who leads the kernels that compute it."""

    time_ms: float | None
    limit_ms: float | None
    of_limit: float | None
    time_at: str


def time_kernels(program: Program, clip: Clip | None = None, runs: int = 20) -> FrameTimes:
    """Time a program of fixed size, on the last frame of a clip or on noise.

    Raises:
        TargetError, LinkError, ResolutionError, UnsupportedError, MissingExtraError, CalibrationError
    """
    require_fixed_size(program)
    load_backend("tvm")
    from mattecompress.backends.tvm.profile import profile

    lowered = lower(program)
    densities = _densities(lowered, clip) if clip is not None else {}
    found = profile(lowered, _noise(program) if clip is None else clip, runs, densities)
    return FrameTimes(
        program=program.name,
        digest=_digest(program),
        runs=runs,
        frame_ms=found.frame_ms,
        densities=bool(densities),
        products={str(kind): rate for kind, rate in found.limits.products.items()},
        bytes=dict(found.limits.bytes),
        kernels=tuple(_kernel_times(program, found)),
    )


def _kernel_times(program: Program, found: "Profile") -> Iterable[KernelTime]:
    nodes = attribute(program, found.kernels)
    facts = {node.name: program.facts(node) for node in program.operations()}
    for kernel, ms, names in zip(found.kernels, found.kernel_ms, nodes, strict=True):
        limit, bound = found.limits.of(kernel)
        yield KernelTime(
            name=kernel.name,
            ms=ms,
            limit_ms=limit,
            of_limit=limit / ms,
            bound=bound,
            arithmetic=kernel.arithmetic,
            products=kernel.products,
            bytes=kernel.bytes,
            nodes=names,
            region=facts[names[0]].region or facts[names[0]].scope if names else "",
        )


def attribute(program: Program, kernels: Sequence["Kernel"]) -> list[tuple[str, ...]]:
    """For each kernel the operations of `program` that it computes, that with most multiply-accumulates first.

    A kernel that computes none, such as one that only orders an input, stands for those that read its result.
    """
    work = {each.name: each.macs + each.binary_macs for each in cost(program).nodes}
    known = {node.name: node for node in program.operations()}
    made: dict[str, list[str]] = defaultdict(list)
    for name, node in known.items():
        for origin in origins(node):
            made[origin].append(name)

    def counterparts(nodes: Iterable[fx.Node]) -> list[str]:
        found: dict[str, None] = {}
        for node in nodes:
            same = known.get(node.name)
            kept = same is not None and origins(same) == origins(node) and same.target == node.target
            names = [node.name] if kept else [name for origin in origins(node) for name in made[origin]]
            found |= dict.fromkeys(names)
        return list(found)

    result = []
    for kernel in kernels:
        names = counterparts(kernel.nodes)
        readers = list(kernel.nodes)
        while not names and readers:
            readers = [user for node in readers for user in node.users]
            names = counterparts(readers)
        leader = max(names, key=lambda name: work[name], default=None)
        result.append(tuple(sorted(names, key=lambda name: name != leader)))
    return result


def node_times(kernels: Iterable[KernelTime]) -> dict[str, NodeTime]:
    """What is known of each node that a kernel computes, by name."""
    led: dict[str, list[KernelTime]] = defaultdict(list)
    leaders: dict[str, dict[str, None]] = defaultdict(dict)
    for kernel in kernels:
        for name in kernel.nodes:
            leaders[name][kernel.nodes[0]] = None
        for leader in kernel.nodes[:1]:
            led[leader].append(kernel)
    found = {}
    for name, others in leaders.items():
        time, limit = (sum(getattr(kernel, field) for kernel in led[name]) for field in ("ms", "limit_ms"))
        at = ",".join(others)
        found[name] = NodeTime(time, limit, limit / time, at) if led[name] else NodeTime(None, None, None, at)
    return found


def write_times(path: Path, times: FrameTimes) -> None:
    """Write the document of a measurement.

    Raises:
        UnwritableError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(times.as_json(), indent=1) + "\n")


def read_times(path: Path, program: Program) -> dict[str, NodeTime]:
    """What is known of each node of a program, from the document of a measurement.

    Raises:
        TimesError: there is none, it is damaged, or it is of another program.
    """
    again = "measure with `mattecompress bench PROGRAM --nodes --times FILE`"
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TimesError(f"{path} holds no times: {again}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise TimesError(f"{path}: its format is not {FORMAT}: {again}")
    if document.get("digest") != _digest(program):
        other = str(document.get("program"))[:40]
        raise TimesError(f"{path} holds the times of another program, {other!r}, not of this one: {again}")
    try:
        kernels = [_read_kernel(entry) for entry in document["kernels"]]
        names = {node.name for node in program.operations()}
        if not names.issuperset(name for kernel in kernels for name in kernel.nodes):
            raise ValueError("a node that the program lacks")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TimesError(f"{path} is damaged: {again}") from error
    return node_times(kernels)


def _read_kernel(entry: Any) -> KernelTime:
    kernel = KernelTime(**{**entry, "nodes": tuple(entry["nodes"])})
    times = (kernel.ms, kernel.limit_ms, kernel.of_limit)
    if not all(isinstance(value, float) and 0 < value < math.inf for value in times):
        raise ValueError("no time")
    if not all(isinstance(name, str) for name in kernel.nodes):
        raise TypeError("no name")
    return kernel


def _densities(program: Program, clip: Clip) -> Mapping[str, float]:
    """Of the nodes of a lowered program that masks choose from."""
    try:
        return record_decisions(program, clip).densities
    except NoDecisionError:
        return {}


def _noise(program: Program) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = {pair.input for pair in program.states}
    return {
        name: torch.rand(NOISY_FRAMES, *program.facts(node).sizes[1:], generator=generator)
        for name, node in zip(program.input_names, program.inputs, strict=True)
        if name not in states
    }


def _digest(program: Program) -> str:
    return hashlib.sha256(print_program(program).encode()).hexdigest()[:16]
