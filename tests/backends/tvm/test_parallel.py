"""Which loops may be divided: those whose iterations keep apart, and no others."""

import pytest

tvm = pytest.importorskip("tvm")
from tvm import tirx
from tvm.script import tirx as T

from mattecompress.backends.tvm import parallel
from mattecompress.backends.tvm.parallel import divide_loops
from mattecompress.backends.tvm.statements import statements_of

ROWS, COLUMNS = 32, 48


@pytest.fixture(autouse=True)
def all_work_is_enough(monkeypatch):
    monkeypatch.setattr(parallel, "ENOUGH_WORK", 1)


def divided(function: tirx.PrimFunc) -> list[int | None]:
    """Of every loop at the top, how many parts it is divided into, or None."""
    loops = [s for s in statements_of(divide_loops(function).body) if isinstance(s, tirx.For)]
    return [int(loop.extent) if loop.kind == tirx.ForKind.PARALLEL else None for loop in loops]


def test_rows_are_apart():
    @T.prim_func(private=False)
    def function(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
        for i, j in T.grid(ROWS, COLUMNS):
            y[i, j] = x[ROWS - 1 - i, j] + x[i, 0]

    assert divided(function) == [ROWS]


def test_short_loops_around_each_other_are_one():
    @T.prim_func(private=False)
    def function(x: T.Buffer((64, COLUMNS), "float32"), y: T.Buffer((64, COLUMNS), "float32")):
        for o, _n, i, k, j in T.grid(3, 1, 4, 16, 16):
            y[i * 16 + k, o * 16 + j] = x[i * 16 + k, o * 16 + j]

    assert divided(function) == [3 * 4]


def test_bands_with_a_buffer_of_their_own():
    @T.prim_func(private=False)
    def function(x: T.Buffer((ROWS + 2, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
        for band in range(8):
            gather = T.alloc_buffer((6, COLUMNS), "float32")
            for i, j in T.grid(6, COLUMNS):
                gather[i, j] = x[band * 4 + i, j]
            for i, j in T.grid(4, COLUMNS):
                y[band * 4 + i, j] = gather[i, j] + gather[i + 2, j]

    assert divided(function) == [8]


def test_a_sum_in_place_keeps_to_its_row():
    @T.prim_func(private=False)
    def function(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS,), "float32")):
        for i in range(ROWS):
            y[i] = T.float32(0)
            for j in range(COLUMNS):
                y[i] = y[i] + x[i, j]

    assert divided(function) == [ROWS]


def test_each_loop_at_the_top_is_judged_by_itself():
    @T.prim_func(private=False)
    def function(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((COLUMNS,), "float32")):
        sums = T.alloc_buffer((ROWS, COLUMNS), "float32")
        for i, j in T.grid(ROWS, COLUMNS):
            sums[i, j] = x[i, j] * x[i, j]
        for i, j in T.grid(ROWS, COLUMNS):
            y[j] = y[j] + sums[i, j]

    assert divided(function) == [ROWS, None]


@T.prim_func(private=False)
def recurrence(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS + 1, COLUMNS), "float32")):
    for i, j in T.grid(ROWS, COLUMNS):
        y[i + 1, j] = y[i, j] + x[i, j]


@T.prim_func(private=False)
def overlap(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS + 4, COLUMNS), "float32")):
    for i, k, j in T.grid(8, 5, COLUMNS):
        y[i * 4 + k, j] = x[i, j]


@T.prim_func(private=False)
def shared_buffer(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
    row = T.alloc_buffer((COLUMNS,), "float32")
    for i in range(ROWS):
        for j in range(COLUMNS):
            row[j] = x[i, j]
        for j in range(COLUMNS):
            y[i, j] = row[COLUMNS - 1 - j]


@T.prim_func(private=False)
def scatter(x: T.Buffer((ROWS,), "int32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
    for i, j in T.grid(ROWS, COLUMNS):
        y[x[i], j] = T.float32(1)


@T.prim_func(private=False)
def two_strides(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((2 * ROWS, COLUMNS), "float32")):
    for i, j in T.grid(ROWS, COLUMNS):
        y[i, j] = x[i, j]
        y[2 * i, j] = x[i, j]


@T.prim_func(private=False)
def folded(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
    for i, j in T.grid(ROWS, COLUMNS):
        y[i // 2, j] = x[i, j]


@T.prim_func(private=False)
def unknown(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
    for i, j in T.grid(ROWS, COLUMNS):
        T.evaluate(T.call_extern("int32", "touch", y.data))
        y[i, j] = x[i, j]


@pytest.mark.parametrize(
    "function", [recurrence, overlap, shared_buffer, scatter, two_strides, folded, unknown]
)
def test_iterations_that_may_meet_stay_in_order(function):
    assert divided(function) == [None]


def test_little_work_is_not_divided(monkeypatch):
    monkeypatch.setattr(parallel, "ENOUGH_WORK", ROWS * COLUMNS + 1)

    @T.prim_func(private=False)
    def function(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
        for i, j in T.grid(ROWS, COLUMNS):
            y[i, j] = x[i, j]

    assert divided(function) == [None]
