"""The static memory plan: every tensor of one frame at a fixed offset of one arena, before anything runs.

Tensors live from the call that writes them to the last call that reads them. A result may take the place of an input, a
state is overwritten where that is read in time and else alternates between two places, and a tensor of the caller's is
read and written where the caller has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mattecompress.backends.tvm.freestanding.arena import ALIGNMENT, Lifetime, allocate
from mattecompress.errors import UserError

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
    """One kernel call: the function's name and the storages it reads and writes, in argument order.

    over: a storage it reads and one it writes that are one memory.
    """

    function: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    over: tuple[int, int] | None = None


@dataclass(frozen=True)
class CallSequence:
    """A straight sequence of kernel calls over numbered storages.

    sizes: bytes of each storage. inputs, outputs: the program's tensors, with the storage of each. constants: the
    bytes of the storages that hold weights. held: for an input that is a state, the calls before and after a frame that
    bring it into the layout in which it is kept and back. Storages that are neither are written by exactly one call.
    """

    sizes: tuple[int, ...]
    calls: tuple[Call, ...]
    inputs: tuple[tuple[TensorSpec, int], ...]
    outputs: tuple[tuple[TensorSpec, int], ...]
    constants: Mapping[int, bytes]
    held: Mapping[str, tuple[Call, Call]] = field(default_factory=dict)


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
    """One kernel call with its arguments' places, scratch last; or a copy of `bytes`, when function is empty.

    local: the scratch of the first thread, where threads need some each.
    """

    function: str
    arguments: tuple[Place, ...]
    bytes: int = 0
    local: Place | None = None


@dataclass(frozen=True)
class StateSlots:
    """The two offsets that a state alternates between; they are one where a frame may overwrite its input.

    enter: puts a state that the caller gives where the frame reads it. leave: hands out the new one.
    """

    input: int
    output: int
    offsets: tuple[int, int]
    bytes: int
    enter: Step
    leave: Step


@dataclass(frozen=True)
class Plan:
    """What a frame does and where everything is.

    states: by pair, with the indices of its input and output. output_offsets: arena offset of each output for
    callers who do not want it, None for a state. weights: the constants, each at a multiple of 64 bytes.
    local_bytes: working memory that every further thread needs besides the arena.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    states: tuple[StateSlots, ...]
    output_offsets: tuple[int | None, ...]
    weights: bytes = field(repr=False)
    arena_bytes: int
    local_bytes: int = 0

    @property
    def arena_megabytes(self) -> float:
        """Working memory in units of 10^6 bytes."""
        return self.arena_bytes / 1e6


def make_plan(
    sequence: CallSequence,
    states: Sequence[tuple[str, str]] = (),
    scratch: Mapping[str, int] | None = None,
    local: Mapping[str, int] | None = None,
) -> Plan:
    """Plan one frame of a sequence.

    states: pairs of (input name, output name). scratch, local: bytes of working memory by function, of all threads
    together, for those that take a last argument of their own for it, and of each thread.

    Raises:
        PlanError: a state whose ends are missing or differ in size.
    """
    return _Planner(sequence, states, scratch or {}, local or {}).plan()


def state_ends(sequence: CallSequence, states: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Of each state, given by its names, the indices of its input and its output.

    Raises:
        PlanError: one is missing, or they differ in shape or type.
    """
    inputs, outputs = ([spec for spec, _ in ends] for ends in (sequence.inputs, sequence.outputs))
    names_in, names_out = [spec.name for spec in inputs], [spec.name for spec in outputs]
    pairs = []
    for source, result in states:
        if source not in names_in or result not in names_out:
            raise PlanError(f"state {source}<-{result}: the program has no such input and output")
        i, o = names_in.index(source), names_out.index(result)
        if (inputs[i].shape, inputs[i].dtype) != (outputs[o].shape, outputs[o].dtype):
            raise PlanError(f"state {source}<-{result}: its input is {inputs[i]}, its output {outputs[o]}")
        pairs.append((i, o))
    return pairs


class _Planner:
    """The one computation of `make_plan`: roles of storages, then lifetimes, then offsets, then steps."""

    def __init__(
        self,
        sequence: CallSequence,
        states: Sequence[tuple[str, str]],
        scratch: Mapping[str, int],
        local: Mapping[str, int],
    ) -> None:
        self.sequence, self.scratch, self.local = sequence, scratch, local
        self.inputs = tuple(spec for spec, _ in sequence.inputs)
        self.outputs = tuple(spec for spec, _ in sequence.outputs)
        self.pairs = state_ends(sequence, states)
        self.end = len(sequence.calls)
        self.written = {s: step for step, call in enumerate(sequence.calls) for s in call.writes}
        self.places: dict[int, Place] = {}
        self.copies: list[tuple[int, Place]] = []
        self.olds, self.news = ([self._ends(*pair)[end] for pair in self.pairs] for end in (0, 1))
        self._give_roles()
        self.last_read = self._last_reads()

    def _ends(self, source: int, result: int) -> tuple[int, int]:
        """The storages of a state before and after the frame, as kernels see it."""
        held = self.sequence.held.get(self.inputs[source].name)
        if held:
            return held[0].writes[0], held[1].reads[0]
        return self.sequence.inputs[source][1], self.sequence.outputs[result][1]

    def _give_roles(self) -> None:
        """Places that do not depend on offsets; what cannot be written where it belongs is copied there."""
        state_inputs, state_outputs = ({pair[end] for pair in self.pairs} for end in (0, 1))
        for index, (_, storage) in enumerate(self.sequence.inputs):
            if index not in state_inputs:
                self.places[storage] = Place("input", index)
        for index, storage in enumerate(self.olds):
            self.places[storage] = Place("old", index)
        wanted = [(storage, Place("new", index)) for index, storage in enumerate(self.news)]
        for index, (_, storage) in enumerate(self.sequence.outputs):
            if index not in state_outputs:
                wanted.append((storage, Place("output", index)))
        for storage, place in wanted:
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
        requests: dict[object, Lifetime] = {}
        first_of: dict[int, int] = {}
        for storage, step in self.written.items():
            if storage in self.places:
                continue
            over = self.sequence.calls[step].over
            first = first_of[storage] = first_of[over[0]] if over and over[1] == storage else storage
            begun = requests[first].first if first in requests else step
            last = self.last_read.get(storage, step)
            requests[first] = Lifetime(self.sequence.sizes[storage], begun, last)
        for step, call in enumerate(self.sequence.calls):
            for kind, sizes in (("scratch", self.scratch), ("local", self.local)):
                if sizes.get(call.function):
                    requests[kind, step] = Lifetime(sizes[call.function], step, step)
        for index, spec in enumerate(self.outputs):
            if index not in {o for _, o in self.pairs}:
                requests["output", index] = Lifetime(spec.bytes, self._output_step(index), final)
        for index, (source, _) in enumerate(self.pairs):
            idle = self._idle(index)
            for half in range(2 if idle is None else 1):
                requests["state", index, half] = Lifetime(self.inputs[source].bytes, 0, final, idle)
        offsets, total = allocate(list(requests.values()))
        placed = dict(zip(requests, offsets, strict=True))
        return self._assemble(placed | {storage: placed[first] for storage, first in first_of.items()}, total)

    def _output_step(self, index: int) -> int:
        storage = self.sequence.outputs[index][1]
        direct = self.places.get(storage) == Place("output", index)
        return self.written[storage] if direct else self.end

    def _idle(self, index: int) -> tuple[int, int] | None:
        """First and last step between an old state's last reader and the new one's writer; None if they overlap.

        A writer that overwrites what it reads leaves no step between them.
        """
        old, new = self.olds[index], self.news[index]
        direct = self.places.get(new) == Place("new", index)
        begun = self.written[new] if direct else self.end
        last = max(0, self.last_read.get(old, 0))
        overwrites = direct and last == begun and self.sequence.calls[begun].over == (old, new)
        return (last + 1, begun - 1) if last < begun or overwrites else None

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
            shared, own = (
                Place("arena", offsets[kind, index]) if (kind, index) in offsets else None
                for kind in ("scratch", "local")
            )
            arguments = (*map(place, (*call.reads, *call.writes)), *filter(None, [shared]))
            steps.append(Step(call.function, arguments, local=own))
        for storage, target in self.copies:
            steps.append(Step("", (place(storage), target), self.sequence.sizes[storage]))
        states = []
        for index, (source, result) in enumerate(self.pairs):
            first = offsets["state", index, 0]
            size = self.inputs[source].bytes
            enter, leave = self.sequence.held.get(self.inputs[source].name, (None, None))
            states.append(
                StateSlots(
                    source,
                    result,
                    (first, offsets.get(("state", index, 1), first)),
                    size,
                    Step(
                        enter.function if enter else "", (Place("input", source), Place("old", index)), size
                    ),
                    Step(
                        leave.function if leave else "", (Place("new", index), Place("output", result)), size
                    ),
                )
            )
        output_offsets = tuple(offsets.get(("output", index)) for index in range(len(self.outputs)))
        local = max((self.local.get(call.function, 0) for call in self.sequence.calls), default=0)
        return Plan(
            self.inputs, self.outputs, tuple(steps), tuple(states), output_offsets, weights, total, local
        )


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
