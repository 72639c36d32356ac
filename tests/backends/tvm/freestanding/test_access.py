"""When a result may take the place of an input, and which kernels only transpose."""

import pytest

tvm = pytest.importorskip("tvm")
from tvm import te, tirx
from tvm.script import tirx as T

from mattecompress.backends.tvm.compute.mathematics import sigmoid
from mattecompress.backends.tvm.freestanding.access import overwritable, overwriting, permutation
from mattecompress.backends.tvm.freestanding.objects import compile_kernels, lower_to_loops
from mattecompress.backends.tvm.schedule import schedule_function
from mattecompress.backends.tvm.targets import find_target

HOST = find_target("host")
N, M = 24, 40


def loops(*tensors: te.Tensor, scheduled: bool = False) -> tirx.PrimFunc:
    function = te.create_prim_func(list(tensors))
    if scheduled:
        with HOST.tvm():
            function = schedule_function(function.with_attr("op_pattern", 0), HOST).function
    return lower_to_loops(tvm.IRModule({"kernel": function}), ["kernel"], HOST)["kernel"]


def matrix(name: str, rows: int = N, columns: int = M, dtype: str = "float32") -> te.Tensor:
    return te.placeholder((rows, columns), name=name, dtype=dtype)


@pytest.mark.parametrize("scheduled", [False, True])
def test_elementwise_results_may_take_any_input_of_their_shape(scheduled):
    x, y, row = matrix("x"), matrix("y"), te.placeholder((M,), name="row")
    z = te.compute((N, M), lambda i, j: x[i, j] * y[i, j] + row[j] + x[i, j], name="z")
    assert overwritable(loops(x, y, row, z, scheduled=scheduled)) == [(0, 3), (1, 3)]


def test_what_neighbours_read_must_stay():
    x, y = matrix("x"), matrix("y")
    z = te.compute((N, M), lambda i, j: x[i, j] + x[i, (j + 1) % M] + y[N - 1 - i, j], name="z")
    assert overwritable(loops(x, y, z)) == []


def test_another_shape_or_type_needs_a_place_of_its_own():
    x, y = matrix("x"), matrix("y", dtype="int32")
    z = te.compute((M, N), lambda i, j: x[j, i], name="z")
    w = te.compute((N, M), lambda i, j: y[i, j].astype("float32"), name="w")
    assert overwritable(loops(x, z)) == []
    assert overwritable(loops(y, w)) == []


def test_an_element_written_twice_must_not_be_read_again():
    @T.prim_func(private=False)
    def twice(x: T.Buffer((N, M), "float32"), y: T.Buffer((N, M), "float32")):
        for i, j in T.grid(N, M):
            y[i, j] = x[i, j] + T.float32(1)
        for i in range(N):
            y[i, 0] = x[i, 0] * T.float32(2)

    assert overwritable(twice) == []


def test_an_input_read_whole_before_the_result_is_begun():
    x = matrix("x")
    sums = te.compute((N, M), lambda i, j: x[i, M - 1 - j] + x[N - 1 - i, j], name="sums")
    z = te.compute((N, M), lambda i, j: sums[i, j] * sums[i, j], name="z")
    assert overwritable(loops(x, z)) == [(0, 1)]


def test_sums_that_are_kept_in_the_result():
    x = matrix("x", M, M)
    k = te.reduce_axis((0, M), name="k")
    z = te.compute((M, M), lambda i, j: te.sum(x[i, k] * x[k, j], axis=k), name="z")
    assert overwritable(loops(x, z)) == []


def test_the_overwriting_kernel_reads_its_result():
    x, y = matrix("x"), matrix("y")
    z = te.compute((N, M), lambda i, j: x[i, j] - y[i, j], name="z")
    text = overwriting(loops(x, y, z), 1, 2).script()
    assert "z[i, j] = x[i, j] - z[i, j]" in text.replace("T.int64", "")


def test_the_overwriting_kernel_compiles_beside_its_other_form():
    """Values that it binds have names of their own: a sigmoid over the sum of two tensors."""
    x, y = matrix("x"), matrix("y")
    total = te.compute((N, M), lambda i, j: x[i, j] + y[i, j], name="total")
    z = te.compute((N, M), lambda i, j: sigmoid(total[i, j]), name="z")
    kernel = loops(x, y, z)
    both = {"kernel": kernel, "kernel_over": overwriting(kernel, 0, 2)}
    assert set(compile_kernels(both, HOST, "test").symbols) == set(both)


def test_transpositions_are_known_whatever_their_schedule():
    x = te.placeholder((1, 20, 8, 12), name="x")
    moved = te.compute((1, 8, 12, 20), lambda n, h, w, c: x[n, c, h, w], name="moved")
    back = te.placeholder((1, 8, 12, 20), name="back")
    home = te.compute((1, 20, 8, 12), lambda n, c, h, w: back[n, h, w, c], name="home")
    for scheduled in (False, True):
        assert permutation(loops(x, moved, scheduled=scheduled)) == (0, 2, 3, 1)
        assert permutation(loops(back, home, scheduled=scheduled)) == (0, 3, 1, 2)


def test_what_computes_or_picks_is_no_transposition():
    x = matrix("x", N, N)
    for element in (
        lambda i, j: x[j, i] + 1,
        lambda i, j: x[j, j],
        lambda i, j: x[j, N - 1 - i],
        lambda i, j: x[j, i].astype("int32"),
    ):
        assert permutation(loops(x, te.compute((N, N), element, name="z"))) is None
