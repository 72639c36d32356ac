"""Kernels over bare pointers, called here through ctypes."""

import ctypes
import itertools
import subprocess

import numpy as np
import pytest

from mattecompress.backends.tvm.targets import find_target

tvm = pytest.importorskip("tvm")
from tvm import te, tirx
from tvm.script import tirx as T

from mattecompress.backends.tvm.freestanding.arena import align
from mattecompress.backends.tvm.freestanding.objects import compile_kernels, lower_to_loops
from mattecompress.backends.tvm.kernels.intrinsics import has_fused_multiply_add

pytestmark = pytest.mark.needs("gcc")


class Loaded:
    """A kernel in this process; it runs its phases one after the other, each loop whole."""

    def __init__(self, function, folder):
        loops = lower_to_loops(tvm.IRModule({"kernel": function}), ["kernel"], find_target("host"))
        made = compile_kernels(loops, find_target("host"), "test")
        made.write(folder / "kernels.o")
        subprocess.run(["gcc", "-shared", "kernels.o", "-o", "kernels.so"], cwd=folder, check=True)
        library = ctypes.CDLL(str(folder / "kernels.so"))
        self.kernel = made.kernels["kernel"]
        self.phases = [library[symbol] for symbol in made.symbols["kernel"]]

    def __call__(self, *arrays, pieces=1):
        shared, local = (aligned(size) for size in (self.kernel.shared, self.kernel.local))
        tensors = [*arrays, shared] if self.kernel.shared else list(arrays)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in tensors]
        for function, phase in zip(self.phases, self.kernel.phases, strict=True):
            if phase.extent is None:
                function(*pointers)
                continue
            cuts = [phase.extent * k // pieces for k in range(pieces + 1)]
            for begin, end in reversed(list(itertools.pairwise(cuts))):
                local[:] = 0xA5
                function(*pointers, local.ctypes.data_as(ctypes.c_void_p), begin, end)


def aligned(size):
    block = np.zeros(size + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + size]


def chain(size: int):
    x = te.placeholder((size,), name="x")
    twice = te.compute((size,), lambda i: x[i] + x[i], name="twice")
    return te.create_prim_func([x, te.compute((size,), lambda i: twice[size - 1 - i] * x[i], name="y")])


@pytest.mark.parametrize(("size", "scratch"), [(256, 0), (257, 1088), (1000, 4032)])
def test_large_temporaries_become_scratch(tmp_path, size, scratch):
    kernel = Loaded(chain(size), tmp_path)
    assert (kernel.kernel.shared, kernel.kernel.local) == (scratch, 0)
    x, y = np.random.default_rng(0).random(size, dtype=np.float32), np.zeros(size, np.float32)
    kernel(x, y)
    assert np.array_equal(y, 2 * x[::-1] * x)


def test_local_accumulators_stay_on_the_stack(tmp_path):
    @T.prim_func(private=False)
    def tile(x: T.Buffer((64, 512), "float32"), y: T.Buffer((512,), "float32")):
        T.func_attr({"tirx.noalias": True})
        sums = T.alloc_buffer((512,), "float32", scope="local")
        for i in T.serial(512):
            sums[i] = T.float32(0)
        for k in T.serial(64):
            for i in T.serial(512):
                sums[i] = sums[i] + x[k, i]
        for i in T.serial(512):
            y[i] = sums[i]

    kernel = Loaded(tile, tmp_path)
    assert (kernel.kernel.shared, kernel.kernel.local) == (0, 0)
    x, y = np.random.default_rng(0).integers(0, 9, (64, 512)).astype(np.float32), np.zeros(512, np.float32)
    kernel(x, y)
    assert np.array_equal(y, x.sum(0))


def test_sums_of_products_are_fused(tmp_path):
    a, b, c = (te.placeholder((8,), name=name) for name in "abc")
    kernel = Loaded(te.create_prim_func([a, b, c, te.compute((8,), lambda i: a[i] * b[i] + c[i])]), tmp_path)
    a, b = np.full(8, 1 + 2**-12, np.float32), np.full(8, 1 - 2**-12, np.float32)
    c, y = np.full(8, -1, np.float32), np.zeros(8, np.float32)
    kernel(a, b, c, y)
    assert np.all(y == (-(2.0**-24) if has_fused_multiply_add(find_target("host").tvm()) else 0))


def blur(rows: int, columns: int):
    """Sums of three rows, in two steps: a copy with a border, and for each row its sum by way of a buffer."""

    @T.prim_func(private=False)
    def blur(x: T.Buffer((rows, columns), "float32"), y: T.Buffer((rows, columns), "float32")):
        T.func_attr({"tirx.noalias": True})
        padded = T.alloc_buffer((rows + 2, columns), "float32")
        for i, j in T.grid(rows + 2, columns):
            padded[i, j] = T.if_then_else(
                T.And(i >= 1, i <= rows), x[T.min(T.max(i - 1, 0), rows - 1), j], T.float32(0)
            )
        for i in T.serial(rows):
            row = T.alloc_buffer((columns,), "float32")
            for j in T.serial(columns):
                row[j] = padded[i, j] + padded[i + 1, j]
            for j in T.serial(columns):
                y[i, j] = row[j] + padded[i + 2, j]

    return blur


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_loops_run_in_ranges_in_any_order(tmp_path, pieces):
    rows, columns = 40, 400
    kernel = Loaded(blur(rows, columns), tmp_path)
    assert [phase.extent for phase in kernel.kernel.phases] == [rows + 2, rows]
    assert (kernel.kernel.shared, kernel.kernel.local) == (align(4 * (rows + 2) * columns), 4 * columns)
    x = np.random.default_rng(0).integers(0, 9, (rows, columns)).astype(np.float32)
    y = np.zeros_like(x)
    kernel(x, y, pieces=pieces)
    padded = np.pad(x, ((1, 1), (0, 0)))
    assert np.array_equal(y, padded[:-2] + padded[1:-1] + padded[2:])


def test_only_what_is_called_is_lowered():
    module = tvm.IRModule({"one": chain(16), "two": chain(32)})
    assert list(lower_to_loops(module, ["two", "two"], find_target("host"))) == ["two"]
    assert isinstance(module["one"], tirx.PrimFunc)
