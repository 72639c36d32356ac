"""Rewrites a sequence of calls so that a frame moves and keeps less: states as kernels want them, results in place."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tvm import tirx

from mattecompress.backends.tvm.freestanding.access import overwritable, overwriting, permutation
from mattecompress.backends.tvm.freestanding.plan import Call, CallSequence, state_ends

Pairs = Sequence[tuple[str, str]]
Functions = Mapping[str, tirx.PrimFunc]


def reuse_memory(
    sequence: CallSequence, states: Pairs, functions: Functions
) -> tuple[CallSequence, dict[str, tirx.PrimFunc]]:
    """The sequence after `hold_states` and `overwrite_inputs`, and the functions that it calls.

    functions: the PrimFuncs that the sequence calls, as plain loops.
    """
    moves = {name: permutation(function) for name, function in functions.items()}
    sequence = hold_states(sequence, states, {name: axes for name, axes in moves.items() if axes is not None})
    in_place = {name: overwritable(function) for name, function in functions.items()}
    sequence = overwrite_inputs(sequence, states, in_place)
    made: dict[str, tirx.PrimFunc] = {}
    for call in (call for pair in sequence.held.values() for call in pair):
        made[call.function] = functions[call.function]
    calls = []
    for call in sequence.calls:
        if call.over is None:
            made[call.function] = functions[call.function]
        else:
            source, result = ((*call.reads, *call.writes).index(storage) for storage in call.over)
            name = f"{call.function}_over{source}_{result}"
            made[name] = overwriting(functions[call.function], source, result)
            call = replace(call, function=name)
        calls.append(call)
    return replace(sequence, calls=tuple(calls)), made


def hold_states(
    sequence: CallSequence, states: Pairs, permutations: Mapping[str, tuple[int, ...]]
) -> CallSequence:
    """Keep states from frame to frame in the layout in which kernels use them.

    Where a state is transposed when it comes in, and back when it goes out, both calls leave the frame and are made only
    for a caller who gives the state or asks for it. states: pairs of (input name, output name). permutations: of each
    function that only transposes.
    """
    for source, result in state_ends(sequence, states):
        sequence = _hold(sequence, source, result, permutations)
    return sequence


def _hold(
    sequence: CallSequence, source: int, result: int, permutations: Mapping[str, tuple[int, ...]]
) -> CallSequence:
    spec, given = sequence.inputs[source]
    taken = sequence.outputs[result][1]
    returned = [storage for _, storage in sequence.outputs]
    enter = [call for call in sequence.calls if given in call.reads]
    leave = [call for call in sequence.calls if taken in call.writes]
    if len(enter) != 1 or len(leave) != 1 or given in returned or returned.count(taken) != 1:
        return sequence
    if any(taken in call.reads for call in sequence.calls) or enter[0].writes[0] in returned:
        return sequence
    there, back = (permutations.get(call.function) for call in (enter[0], leave[0]))
    if there is None or back is None or [there[axis] for axis in back] != list(range(len(there))):
        return sequence
    calls = tuple(call for call in sequence.calls if call not in (enter[0], leave[0]))
    return replace(sequence, calls=calls, held={**sequence.held, spec.name: (enter[0], leave[0])})


def overwrite_inputs(
    sequence: CallSequence, states: Pairs, overwritable: Mapping[str, Sequence[tuple[int, int]]]
) -> CallSequence:
    """Let results take the place of inputs that nothing reads afterwards.

    Such a call gets `over`, the storages it reads and writes in one place. overwritable: by function, the pairs of
    arguments, an input and an output, that may be one memory.
    """
    last = {storage: step for step, call in enumerate(sequence.calls) for storage in call.reads}
    pairs = _state_storages(sequence, states)
    returned = [storage for _, storage in sequence.outputs]
    ends = {storage for _, storage in sequence.inputs} | set(returned) | set(sequence.constants)
    ends |= {storage for pair in pairs for storage in pair}
    uses = Counter([*returned, *(new for _, new in pairs if new not in returned)])
    old_of_new = {new: old for old, new in pairs if uses[new] == 1 and not uses[old]}

    def fits(step: int, call: Call, pair: tuple[int, int]) -> bool:
        arguments = (*call.reads, *call.writes)
        source, result = (arguments[index] for index in pair)
        if last[source] != step or Counter(call.reads)[source] > 1:
            return False
        return old_of_new.get(result) == source or not ends & {source, result}

    calls = []
    for step, call in enumerate(sequence.calls):
        arguments = (*call.reads, *call.writes)
        pairs = [pair for pair in overwritable.get(call.function, ()) if fits(step, call, pair)]
        calls.append(replace(call, over=(arguments[pairs[0][0]], arguments[pairs[0][1]])) if pairs else call)
    return replace(sequence, calls=tuple(calls))


def _state_storages(sequence: CallSequence, states: Pairs) -> list[tuple[int, int]]:
    """Of each state, the storages before and after the frame, as kernels see it."""
    storages = []
    for source, result in state_ends(sequence, states):
        spec, old = sequence.inputs[source]
        new = sequence.outputs[result][1]
        if spec.name in sequence.held:
            enter, leave = sequence.held[spec.name]
            old, new = enter.writes[0], leave.reads[0]
        storages.append((old, new))
    return storages
