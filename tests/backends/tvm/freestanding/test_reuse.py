"""States kept as kernels use them, and calls whose result takes an input's place."""

import pytest

pytest.importorskip("tvm")
from mattecompress.backends.tvm.freestanding.plan import Call, CallSequence, TensorSpec
from mattecompress.backends.tvm.freestanding.reuse import hold_states, overwrite_inputs

PAIRS = [("i0", "o0")]
MOVES = {"to": (0, 2, 1), "fro": (0, 2, 1), "other": (1, 0, 2)}


def sequence(*calls: Call, outputs: tuple[int, ...], storages: int = 8) -> CallSequence:
    """Storage 0 is the state i0, storage 1 the input i1."""
    inputs = tuple((TensorSpec(f"i{k}", (1, 4, 4), "float32"), k) for k in range(2))
    results = tuple((TensorSpec(f"o{k}", (1, 4, 4), "float32"), s) for k, s in enumerate(outputs))
    return CallSequence((64,) * storages, calls, inputs, results, {})


STEP = Call("step", (2, 1), (3,))
TO, FRO = Call("to", (0,), (2,)), Call("fro", (3,), (4,))


def test_a_state_that_is_turned_over_and_back_stays_as_it_is():
    result = hold_states(sequence(TO, STEP, FRO, outputs=(4, 3)), PAIRS, MOVES)
    assert (result.calls, result.held) == ((STEP,), {"i0": (TO, FRO)})


@pytest.mark.parametrize(
    "calls",
    [
        (Call("other", (0,), (2,)), STEP, FRO),
        (Call("compute", (0,), (2,)), STEP, FRO),
        (TO, Call("step", (2, 0), (3,)), FRO),
        (TO, STEP, FRO, Call("more", (4,), (5,))),
    ],
    ids=["no inverse", "no move", "read both ways", "read after"],
)
def test_a_state_that_is_used_otherwise_is_moved_in_the_frame(calls):
    given = sequence(*calls, outputs=(4, 3))
    assert hold_states(given, PAIRS, MOVES) == given


def overs(given: CallSequence, **pairs: list[tuple[int, int]]) -> list[tuple[int, int] | None]:
    return [call.over for call in overwrite_inputs(given, PAIRS, pairs).calls]


def test_a_result_takes_the_place_of_what_dies():
    chain = (Call("first", (1,), (2,)), Call("second", (2,), (3,)), Call("last", (3, 0), (4,)))
    given = sequence(*chain, outputs=(4,))
    every = {"first": [(0, 1)], "second": [(0, 1)], "last": [(0, 2)]}
    assert overs(given, **every) == [None, (2, 3), None]
    assert overs(given, last=[(1, 2)]) == [None, None, (0, 4)]


@pytest.mark.parametrize(
    "later", [Call("late", (2, 0), (4,)), Call("late", (3, 0), (4,))], ids=["read later", "dead"]
)
def test_what_is_read_later_stays(later):
    given = sequence(Call("first", (1,), (2,)), Call("second", (2,), (3,)), later, outputs=(4,))
    assert overs(given, second=[(0, 1)])[1] == ((2, 3) if later.reads[0] == 3 else None)


def test_an_input_that_is_passed_twice_stays():
    given = sequence(Call("first", (1,), (2,)), Call("second", (2, 2), (3,)), outputs=(3,))
    assert overs(given, second=[(0, 2)]) == [None, None]
