"""How long each kernel of a frame takes on this machine, and how long it would at least.

A kernel's limit is the longer of two times: that of its products at the rate of their arithmetic, and that of the bytes
of its operands and results at the rate of a copy of as many. Both rates are measured between the runs, so that whatever
else the machine does hits all alike. Products are those that the nodes ask for; Winograd's kernels compute fewer,
and one-bit kernels may look up what the limit counts.
"""

import statistics
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax

from mattecompress.analysis.cost import convolution_macs
from mattecompress.analysis.products import product_macs
from mattecompress.backends.tvm.backend import SharedObject
from mattecompress.backends.tvm.calls import kernel_calls, nodes_of
from mattecompress.backends.tvm.compile import arrange, compile_host, lower
from mattecompress.backends.tvm.limits import ARITHMETICS, COPIES, HOST, Arithmetic, copy_probe, limit_probe
from mattecompress.interface import Clip
from mattecompress.program import Program
from mattecompress.running.feed import Feed
from mattecompress.running.stream import FedBack
from mattecompress.timing import Work, time_in_turn

aten, matte = torch.ops.aten, torch.ops.matte
BINARY = {
    matte.binary_conv2d.default,
    matte.binary_depthwise_conv2d.default,
    matte.binary_conv2d_bits.default,
    matte.binary_depthwise_conv2d_bits.default,
    matte.masked_binary_conv2d.default,
}
INTEGER = {matte.quantized_conv2d.default, matte.masked_quantized_conv2d.default}
MASKED = {
    matte.masked_conv2d.default,
    matte.masked_binary_conv2d.default,
    matte.masked_quantized_conv2d.default,
}
STEPS: dict[Any, tuple[str, ...]] = dict.fromkeys(
    (aten.scaled_dot_product_attention.default, matte.attend_on_grid.default), ("logits", "mixed")
)
"""Operations whose products several kernels compute, and the names of these."""

Densities = Mapping[str, float]


@dataclass(frozen=True)
class Kernel:
    """One call of a kernel.

    nodes: what it computes of the program as `arrange` leaves it: first the nodes that it was called for, then those
        that it computes where it reads them. An input stands for its order in memory.
    products: multiply-accumulates; where a mask chooses, of the share that it lets through, as far as it is known.
    arithmetic: of the products; None where there are none. bytes: of its operands and results.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    products: int
    arithmetic: Arithmetic | None
    bytes: int


@dataclass(frozen=True)
class Limits:
    """What this machine did at most.

    products: of each arithmetic, a second. bytes: read and written a second, by the size of the copy.
    """

    products: Mapping[Arithmetic, float]
    bytes: Mapping[int, float]

    def of(self, kernel: Kernel) -> tuple[float, Literal["arithmetic", "memory"]]:
        """Milliseconds that a kernel takes at least, and what it waits for then."""
        size = max((size for size in self.bytes if size <= kernel.bytes), default=min(self.bytes))
        memory = kernel.bytes / max(rate for each, rate in self.bytes.items() if each >= size) * 1e3
        rate = self.products.get(kernel.arithmetic or "float32", self.products["float32"])
        arithmetic = kernel.products / rate * 1e3
        return (arithmetic, "arithmetic") if arithmetic > memory else (memory, "memory")


@dataclass(frozen=True)
class Profile:
    """Milliseconds of each kernel of a frame, in order, and of the whole frame as it is deployed: medians of runs."""

    kernels: tuple[Kernel, ...]
    kernel_ms: tuple[float, ...]
    frame_ms: float
    limits: Limits


def profile(program: Program, clip: Clip, runs: int, densities: Densities | None = None) -> Profile:
    """Time the kernels of a lowered program on the last frame of a clip, its states carried, with one thread.

    densities: of nodes that are computed only in places, the share of these; those left out count whole.

    Raises:
        TargetError, LinkError, UnsupportedError, CalibrationError
    """
    module = lower(program, HOST)
    library, linked = compile_host(module, HOST), SharedObject(module, program, HOST).over_clips()
    stream, feed = FedBack(program, library.run), Feed(program, [clip])
    frames = [feed.frame(0, index) for index in range(feed.length(0))]
    for frame in frames[:-1]:
        stream.step(**frame)
        linked.step(**frame)
    states = stream.states
    kernels = describe(arrange(program), module, densities or {})
    clock = _Clock({kernel.name for kernel in kernels})
    probes = {kind: limit_probe(kind) for kind in ARITHMETICS}
    copies = {size: copy_probe(size, repeats) for size, repeats in COPIES.items()}
    works = {
        **{str(key): work for key, (work, _) in [*probes.items(), *copies.items()]},
        "warm": lambda: linked.step(**frames[-1]),
        "frame": lambda: linked.step(**frames[-1]),
        "kernels": lambda: clock.watch(library.machine, lambda: library.run(**frames[-1], **states)),
    }
    times = time_in_turn(works, runs)
    limits = Limits(
        {kind: amount / min(times[kind]) * 1e3 for kind, (_, amount) in probes.items()},
        {size: amount / min(times[str(size)]) * 1e3 for size, (_, amount) in copies.items()},
    )
    measured = clock.medians([kernel.name for kernel in kernels])
    return Profile(kernels, measured, statistics.median(times["frame"]), limits)


class _Clock:
    """Takes the time of each call that TVM's machine makes of functions of these names."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.runs: list[list[tuple[str, float]]] = []
        self.start = 0.0

    def watch(self, machine: relax.VirtualMachine, work: Work) -> None:
        """Do a work twice, and keep what its calls take the second time, when its operands are near."""
        machine.set_instrument(self.note)
        for _ in range(2):
            self.runs.append([])
            work()

    def note(self, _: Any, name: str, before: bool, *others: Any) -> None:
        """What the machine calls before and after each call."""
        if before:
            self.start = time.perf_counter()
        elif name in self.names:
            self.runs[-1].append((name, (time.perf_counter() - self.start) * 1e3))

    def medians(self, names: Sequence[str]) -> tuple[float, ...]:
        """Milliseconds of each call, of every second run but the first, which warms up."""
        assert all([name for name, _ in run] == [*names] for run in self.runs)
        runs = [[taken for _, taken in run] for run in self.runs[3::2]]
        return tuple(map(statistics.median, zip(*runs, strict=True)))


def describe(program: Program, module: tvm.IRModule, densities: Densities) -> tuple[Kernel, ...]:
    """What each call of a module's `main` computes; program: as `arrange` leaves it."""
    by_name = {node.name: node for node in program.graph.nodes}
    called_for = [[by_name[name] for name in names] for names in nodes_of(module)]
    held = {node for nodes in called_for for node in nodes}
    calls = kernel_calls(module["main"])
    carriers = _carriers([call.args[0].name_hint for call in calls], called_for)
    kernels = []
    for place, (call, nodes) in enumerate(zip(calls, called_for, strict=True)):
        layers = [node for node in nodes if _macs(program, node) and place in carriers[node]]
        shares = {node: densities.get(node.name, 1.0) if node.target in MASKED else 1.0 for node in layers}
        products = sum(_macs(program, node) * shares[node] / len(carriers[node]) for node in layers)
        kernel = Kernel(
            name=str(call.args[0].name_hint),
            nodes=(*nodes, *_computed_where_read(nodes, held)),
            products=round(products),
            arithmetic=_arithmetic(program, layers[0]) if layers else None,
            bytes=_bytes(call, max(shares.values(), default=1.0)),
        )
        kernels.append(kernel)
    return tuple(kernels)


def _carriers(names: Sequence[str], called_for: Sequence[Sequence[fx.Node]]) -> dict[fx.Node, list[int]]:
    """The calls that share a node's products: the first made for it, or of an operation in `STEPS` all such."""
    found: dict[fx.Node, list[int]] = {}
    for place, nodes in enumerate(called_for):
        for node in nodes:
            steps = STEPS.get(node.target)
            if steps is None:
                found.setdefault(node, [place])
            elif any(step in names[place] for step in steps):
                found.setdefault(node, []).append(place)
    return found


def _computed_where_read(nodes: Iterable[fx.Node], held: Container[fx.Node]) -> list[fx.Node]:
    """Operations on the way to nodes whose values no kernel holds in memory."""
    found: dict[fx.Node, None] = {}
    waiting = [source for node in nodes for source in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in held and node not in found:
            found[node] = None
            waiting += node.all_input_nodes
    return list(found)


def _macs(program: Program, node: fx.Node) -> int:
    return 0 if node.op == "placeholder" else convolution_macs(program, node) or product_macs(program, node)


def _arithmetic(program: Program, node: fx.Node) -> Arithmetic:
    if node.target in BINARY:
        return "binary"
    if node.target in INTEGER:
        return "int8"
    return "float16" if program.facts(node).dtype is torch.float16 else "float32"


def _bytes(call: relax.Call, share: float) -> int:
    """Of the operands and the results; of those that are no constants only this share."""
    operands = list(call.args[1].fields)
    constants = [each.ty for each in operands if not isinstance(each, relax.Var)]
    activations = [each.ty for each in operands if isinstance(each, relax.Var)]
    results = [call.ty] if isinstance(call.ty, relax.TensorType) else call.ty.fields
    return round(sum(map(_size, constants)) + share * sum(map(_size, (*activations, *results))))


def _size(kind: relax.TensorType) -> int:
    return prod(map(int, kind.shape)) * np.dtype(str(kind.dtype)).itemsize
