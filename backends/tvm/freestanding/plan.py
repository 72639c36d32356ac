"""The static memory plan: every tensor of one frame at a fixed offset of one arena, before anything runs.

Tensors live from the call that writes them to the last call that reads them; tensors that never live together may
share bytes. Placement is greedy (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
2020, section 4.3): large tensors first, each into the smallest gap that holds it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mattecompress.errors import UserError

ALIGNMENT = 64
ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "float16": 2,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
}
ITEM_BYTES |= {"float32": 4, "int64": 8, "uint64": 8, "float64": 8}


class PlanError(UserError):
    """A program whose memory cannot be planned ahead."""


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor: its shape in elements and its type, such as `float32`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        total = ITEM_BYTES[self.dtype]
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True)
class Call:
    """One kernel call: the function's name and the storages it reads and writes, in argument order."""

    function: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class CallSequence:
    """A straight sequence of kernel calls over numbered storages.

    sizes: bytes of each storage. inputs, outputs: the program's tensors, with the storage of each. constants: the
    bytes of the storages that hold weights. Storages that are neither are written by exactly one call.
    """

    sizes: tuple[int, ...]
    calls: tuple[Call, ...]
    inputs: tuple[tuple[TensorSpec, int], ...]
    outputs: tuple[tuple[TensorSpec, int], ...]
    constants: Mapping[int, bytes]


@dataclass(frozen=True)
class Place:
    """Where a tensor is while a frame runs.

    `arena` and `constant`: at an offset in bytes. `input` and `output`: at the caller's pointer of that index.
    `old` and `new`: the state of that index before and after the frame.
    """

    kind: Literal["arena", "constant", "input", "output", "old", "new"]
    value: int


@dataclass(frozen=True)
class Step:
    """One kernel call with its arguments' places, scratch last; or a copy of `bytes`, when function is empty."""

    function: str
    arguments: tuple[Place, ...]
    bytes: int = 0


@dataclass(frozen=True)
class StateSlots:
    """The two offsets that a state alternates between; they are one where a frame may overwrite its input."""

    input: int
    output: int
    offsets: tuple[int, int]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a frame does and where everything is.

    states: by pair, with the indices of its input and output. output_offsets: arena offset of each output for
    callers who do not want it, None for a state. weights: the constants, each at a multiple of 64 bytes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    states: tuple[StateSlots, ...]
    output_offsets: tuple[int | None, ...]
    weights: bytes = field(repr=False)
    arena_bytes: int

    @property
    def arena_megabytes(self) -> float:
        """Working memory in units of 10^6 bytes."""
        return self.arena_bytes / 1e6


@dataclass(frozen=True)
class Lifetime:
    """A number of bytes that is in use from step `first` to step `last`, both included."""

    bytes: int
    first: int
    last: int

    def meets(self, other: "Lifetime") -> bool:
        """Whether both are in use at some step."""
        return self.first <= other.last and other.first <= self.last


def align(size: int) -> int:
    """The next multiple of 64."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def allocate(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """An offset for each lifetime, and the size of the arena; of two greedy orders, the smaller."""
    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-lifetimes[i].bytes, lifetimes[i].first, i),
        lambda i: (lifetimes[i].first - lifetimes[i].last, -lifetimes[i].bytes, i),
    )
    plans = [_place_in_order(lifetimes, sorted(range(len(lifetimes)), key=order)) for order in orders]
    return min(plans, key=lambda plan: plan[1])


def _place_in_order(lifetimes: Sequence[Lifetime], order: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for index in order:
        size = align(lifetimes[index].bytes)
        busy = sorted(
            (offsets[other], align(lifetimes[other].bytes))
            for other in placed
            if lifetimes[other].meets(lifetimes[index])
        )
        offsets[index] = _best_gap(busy, size)
        placed.append(index)
        total = max(total, offsets[index] + size)
    return offsets, total


def _best_gap(busy: Sequence[tuple[int, int]], size: int) -> int:
    """Where `size` bytes fit most tightly between sorted (offset, size) blocks; after them if nowhere."""
    best, best_gap, end = -1, 0, 0
    for offset, length in busy:
        gap = offset - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, offset + length)
    return end if best < 0 else best


def make_plan(
    sequence: CallSequence, states: Sequence[tuple[str, str]] = (), scratch: Mapping[str, int] | None = None
) -> Plan:
    """Plan one frame of a sequence.

    states: pairs of (input name, output name). scratch: bytes of working memory by function, for those that
    take a last argument of their own for it.

    Raises:
        PlanError: a state whose ends are missing or differ in size.
    """
    return _Planner(sequence, states, scratch or {}).plan()


class _Planner:
    """The one computation of `make_plan`: roles of storages, then lifetimes, then offsets, then steps."""

    def __init__(
        self, sequence: CallSequence, states: Sequence[tuple[str, str]], scratch: Mapping[str, int]
    ) -> None:
        self.sequence, self.scratch = sequence, scratch
        self.inputs = tuple(spec for spec, _ in sequence.inputs)
        self.outputs = tuple(spec for spec, _ in sequence.outputs)
        self.pairs = [self._pair(*names) for names in states]
        self.end = len(sequence.calls)
        self.written = {s: step for step, call in enumerate(sequence.calls) for s in call.writes}
        self.places: dict[int, Place] = {}
        self.copies: list[tuple[int, Place]] = []
        self._give_roles()
        self.last_read = self._last_reads()

    def _pair(self, source: str, result: str) -> tuple[int, int]:
        names_in, names_out = [s.name for s in self.inputs], [s.name for s in self.outputs]
        if source not in names_in or result not in names_out:
            raise PlanError(f"state {source}<-{result}: the program has no such input and output")
        i, o = names_in.index(source), names_out.index(result)
        if (self.inputs[i].shape, self.inputs[i].dtype) != (self.outputs[o].shape, self.outputs[o].dtype):
            raise PlanError(
                f"state {source}<-{result}: its input is {self.inputs[i]}, its output {self.outputs[o]}"
            )
        return i, o

    def _give_roles(self) -> None:
        """Places that do not depend on offsets; outputs that cannot be written where they belong are copied."""
        state_of_input = {i: index for index, (i, _) in enumerate(self.pairs)}
        state_of_output = {o: index for index, (_, o) in enumerate(self.pairs)}
        for index, (_, storage) in enumerate(self.sequence.inputs):
            state = state_of_input.get(index)
            self.places[storage] = Place("input", index) if state is None else Place("old", state)
        for index, (_, storage) in enumerate(self.sequence.outputs):
            state = state_of_output.get(index)
            place = Place("output", index) if state is None else Place("new", state)
            if storage in self.places or storage in self.sequence.constants:
                self.copies.append((storage, place))
            else:
                self.places[storage] = place

    def _last_reads(self) -> dict[int, int]:
        last = {s: step for step, call in enumerate(self.sequence.calls) for s in call.reads}
        last.update({storage: self.end + number for number, (storage, _) in enumerate(self.copies)})
        return last

    def plan(self) -> Plan:
        final = self.end + len(self.copies)
        requests: list[tuple[object, Lifetime]] = []
        for storage, step in self.written.items():
            if storage not in self.places:
                last = self.last_read.get(storage, step)
                requests.append((storage, Lifetime(self.sequence.sizes[storage], step, last)))
        for step, call in enumerate(self.sequence.calls):
            if self.scratch.get(call.function):
                requests.append((("scratch", step), Lifetime(self.scratch[call.function], step, step)))
        for index, spec in enumerate(self.outputs):
            if index not in {o for _, o in self.pairs}:
                requests.append((("output", index), Lifetime(spec.bytes, self._output_step(index), final)))
        for index, (source, result) in enumerate(self.pairs):
            for half in range(1 if self._overwrites(source, result) else 2):
                requests.append((("state", index, half), Lifetime(self.inputs[source].bytes, 0, final)))
        offsets, total = allocate([lifetime for _, lifetime in requests])
        return self._assemble(dict(zip((key for key, _ in requests), offsets, strict=True)), total)

    def _output_step(self, index: int) -> int:
        storage = self.sequence.outputs[index][1]
        direct = self.places.get(storage) == Place("output", index)
        return self.written[storage] if direct else self.end

    def _overwrites(self, source: int, result: int) -> bool:
        """Whether the old state is read for the last time before the new one is begun."""
        storage = self.sequence.outputs[result][1]
        begun = self.written[storage] if self.places.get(storage, Place("old", 0)).kind == "new" else self.end
        return self.last_read.get(self.sequence.inputs[source][1], -1) < begun

    def _assemble(self, offsets: Mapping[object, int], total: int) -> Plan:
        weights, constants = _pack(self.sequence.constants)

        def place(storage: int) -> Place:
            if storage in self.places:
                return self.places[storage]
            if storage in constants:
                return Place("constant", constants[storage])
            return Place("arena", offsets[storage])

        steps = []
        for index, call in enumerate(self.sequence.calls):
            own = offsets.get(("scratch", index))
            arguments = tuple(map(place, (*call.reads, *call.writes)))
            steps.append(Step(call.function, arguments if own is None else (*arguments, Place("arena", own))))
        for storage, target in self.copies:
            steps.append(Step("", (place(storage), target), self.sequence.sizes[storage]))
        states = []
        for index, (source, result) in enumerate(self.pairs):
            first = offsets["state", index, 0]
            pair = (first, offsets.get(("state", index, 1), first))
            states.append(StateSlots(source, result, pair, self.inputs[source].bytes))
        output_offsets = tuple(offsets.get(("output", index)) for index in range(len(self.outputs)))
        return Plan(self.inputs, self.outputs, tuple(steps), tuple(states), output_offsets, weights, total)


def _pack(constants: Mapping[int, bytes]) -> tuple[bytes, dict[int, int]]:
    """All constants in one blob, equal ones once, and the offset of each."""
    blob, offsets, seen = bytearray(), {}, {}
    for storage, data in constants.items():
        if data not in seen:
            blob += bytes(-len(blob) % ALIGNMENT)
            seen[data] = len(blob)
            blob += data
        offsets[storage] = seen[data]
    return bytes(blob), offsets
