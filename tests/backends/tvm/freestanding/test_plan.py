from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mattecompress.backends.tvm.freestanding.plan import (
    Call,
    CallSequence,
    Place,
    Plan,
    PlanError,
    TensorSpec,
    make_plan,
)
from mattecompress.backends.tvm.freestanding.reuse import overwrite_inputs


@st.composite
def programs(draw):
    """A random sequence with states, reshaped outputs and scratch: (sequence, pairs, scratch).

    Some states are kept in a layout of their own, and some results may take the place of an input.
    """
    sizes, inputs, calls, held, entered = [], [], [], {}, []
    states = draw(st.integers(0, 2))
    extents = [draw(st.integers(1, 40)) for _ in range(states)]
    for extent in [*extents, *draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))]:
        inputs.append((TensorSpec(f"i{len(inputs)}", (extent,), "float32"), len(sizes)))
        sizes.append(4 * extent)
    usable = list(range(len(sizes)))
    for index, extent in enumerate(extents):
        if draw(st.booleans()):
            entered.append(Call("enter", (index,), (len(sizes),)))
            usable.remove(index)
            usable.append(len(sizes))
            sizes.append(4 * extent)
        else:
            entered.append(None)
    constants = {len(sizes): bytes(range(100))}
    usable.append(len(sizes))
    sizes.append(100)
    for _ in range(draw(st.integers(1, 8))):
        reads = draw(st.lists(st.sampled_from(usable), max_size=3))
        results = draw(st.lists(st.sampled_from([*extents, 5, 33]), min_size=1, max_size=2))
        written = range(len(sizes), len(sizes) + len(results))
        calls.append(Call(f"f{len(calls)}", tuple(reads), tuple(written)))
        usable += written
        sizes += [4 * extent for extent in results]
    outputs, plain = [], list(usable)
    for index, extent in enumerate(extents):
        fitting = [storage for storage in usable if sizes[storage] == 4 * extent]
        storage = draw(st.sampled_from(fitting))
        if entered[index]:
            held[f"i{index}"] = (entered[index], Call("leave", (storage,), (len(sizes),)))
            storage = len(sizes)
            sizes.append(4 * extent)
        outputs.append((TensorSpec(f"o{len(outputs)}", (extent,), "float32"), storage))
    for storage in draw(st.lists(st.sampled_from(plain), max_size=3)):
        outputs.append((TensorSpec(f"o{len(outputs)}", (sizes[storage],), "uint8"), storage))
    scratch = {call.function: draw(st.sampled_from([0, 64, 1000])) for call in calls}
    pairs = [(f"i{index}", f"o{index}") for index in range(states)]
    sequence = CallSequence(tuple(sizes), tuple(calls), tuple(inputs), tuple(outputs), constants, held)
    in_place = {}
    for call in calls:
        storages = (*call.reads, *call.writes)
        places = [(i, len(call.reads) + o) for i in range(len(call.reads)) for o in range(len(call.writes))]
        equal = [(i, o) for i, o in places if sizes[storages[i]] == sizes[storages[o]]]
        in_place[call.function] = [pair for pair in equal if draw(st.booleans())]
    return overwrite_inputs(sequence, pairs, in_place), pairs, scratch


@dataclass
class Machine:
    """Runs a plan over bytes, where a kernel writes the hash of what it read into all bytes of its results."""

    plan: Plan
    phase: int = 0
    arena: list = field(default_factory=list)

    def __post_init__(self):
        self.arena = ["junk"] * self.plan.arena_bytes
        for state in self.plan.states:
            self.fill(state.offsets[0], state.bytes, "zero")

    def fill(self, offset, size, value):
        self.arena[offset : offset + size] = [value] * size

    def offset(self, place: Place):
        if place.kind == "arena":
            return place.value
        if place.kind == "output":
            return self.plan.output_offsets[place.value]
        return self.plan.states[place.value].offsets[self.phase if place.kind == "old" else 1 - self.phase]

    def read(self, place: Place, size, inputs):
        if place.kind == "input":
            return inputs[place.value]
        if place.kind == "constant":
            assert self.plan.weights[place.value : place.value + size] == bytes(range(100))[:size]
            return "constant"
        offset = self.offset(place)
        (value,) = set(self.arena[offset : offset + size])
        return value

    def frame(self, sequence, scratch, inputs):
        for step, call in zip(self.plan.steps, sequence.calls, strict=False):
            reads, writes = step.arguments[: len(call.reads)], step.arguments[len(call.reads) :]
            if scratch[call.function]:
                self.fill(self.offset(writes[-1]), scratch[call.function], "scratch")
                writes = writes[:-1]
            values = [self.read(p, sequence.sizes[s], inputs) for p, s in zip(reads, call.reads, strict=True)]
            for number, (place, storage) in enumerate(zip(writes, call.writes, strict=True)):
                self.fill(self.offset(place), sequence.sizes[storage], (call.function, number, *values))
            for number, (place, storage) in enumerate(zip(writes, call.writes, strict=True)):
                assert self.read(place, sequence.sizes[storage], inputs)[:2] == (call.function, number)
            for place, storage, value in zip(reads, call.reads, values, strict=True):
                over = call.over is not None and storage == call.over[0]
                assert over or self.read(place, sequence.sizes[storage], inputs) == value
        for step in self.plan.steps[len(sequence.calls) :]:
            source, target = step.arguments
            self.fill(self.offset(target), step.bytes, self.read(source, step.bytes, inputs))
        self.phase = 1 - self.phase


def interpret(sequence, inputs):
    """The value of every storage by name alone, with memory for all."""
    values = dict.fromkeys(sequence.constants, "constant")
    values.update({storage: inputs[i] for i, (_, storage) in enumerate(sequence.inputs)})
    values.update({enter.writes[0]: values[enter.reads[0]] for enter, _ in sequence.held.values()})
    for call in sequence.calls:
        for number, storage in enumerate(call.writes):
            values[storage] = (call.function, number, *(values[s] for s in call.reads))
    values.update({leave.writes[0]: values[leave.reads[0]] for _, leave in sequence.held.values()})
    return [values[storage] for _, storage in sequence.outputs]


@settings(deadline=None)
@given(programs())
def test_a_plan_computes_what_its_sequence_says(program):
    sequence, pairs, scratch = program
    plan = make_plan(sequence, pairs, scratch)
    machine = Machine(plan)
    state = ["zero"] * len(pairs)
    for frame in range(3):
        inputs = state + [f"frame {frame}"] * (len(sequence.inputs) - len(pairs))
        machine.frame(sequence, scratch, inputs)
        expected = interpret(sequence, inputs)
        for index, spec in enumerate(plan.outputs):
            if index < len(pairs):
                place = Place("old", index)
                assert machine.read(place, spec.bytes, inputs) == expected[index]
            else:
                assert machine.read(Place("output", index), spec.bytes, inputs) == expected[index]
        state = expected[: len(pairs)]


def recurrent(reads_late: bool) -> CallSequence:
    """first(i0) -> 2; second(2 [, i0]) -> 3, the new state."""
    spec = TensorSpec("i0", (16,), "float32")
    second = Call("second", (1, 0) if reads_late else (1,), (2,))
    sequence = (Call("first", (0,), (1,)), second)
    return CallSequence((64, 64, 64), sequence, ((spec, 0),), ((TensorSpec("o0", (16,), "float32"), 2),), {})


def test_a_state_is_overwritten_where_its_old_value_is_done_with():
    (slots,) = make_plan(recurrent(reads_late=False), [("i0", "o0")]).states
    assert slots.offsets[0] == slots.offsets[1]


def test_a_state_alternates_where_its_old_value_is_still_read():
    (slots,) = make_plan(recurrent(reads_late=True), [("i0", "o0")]).states
    assert slots.offsets[0] != slots.offsets[1]


def test_equal_constants_are_kept_once():
    sequence = CallSequence(
        (4, 4, 4, 4), (Call("f", (0, 1, 2), (3,)),), (), (), {0: b"abcd", 1: b"wxyz", 2: b"abcd"}
    )
    plan = make_plan(sequence)
    assert plan.weights == b"abcd" + bytes(60) + b"wxyz"
    assert [place.value for place in plan.steps[0].arguments[:3]] == [0, 64, 0]


def test_a_state_without_its_ends_is_refused():
    with pytest.raises(PlanError, match="no such input and output"):
        make_plan(recurrent(reads_late=False), [("i0", "r1o")])


def test_a_state_that_changes_shape_is_refused():
    sequence = recurrent(reads_late=False)
    outputs = ((TensorSpec("o0", (8, 2), "float32"), 2),)
    with pytest.raises(PlanError, match=r"state i0<-o0"):
        make_plan(CallSequence(sequence.sizes, sequence.calls, sequence.inputs, outputs, {}), [("i0", "o0")])


def test_megabytes_are_decimal():
    assert make_plan(recurrent(reads_late=True), [("i0", "o0")]).arena_megabytes == pytest.approx(192e-6)
