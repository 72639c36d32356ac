"""Kernels over bare pointers, called here through ctypes."""

import ctypes
import subprocess

import numpy as np
import pytest

from mattecompress.backends.tvm.targets import find_target

tvm = pytest.importorskip("tvm")
from tvm import te, tirx
from tvm.script import tirx as T

from mattecompress.backends.tvm.freestanding.objects import compile_kernels

pytestmark = pytest.mark.needs("gcc")


def load(function, tmp_path):
    kernels = compile_kernels(tvm.IRModule({"kernel": function}), ["kernel"], find_target("host"), "test")
    kernels.write(tmp_path / "kernels.o")
    subprocess.run(["gcc", "-shared", "kernels.o", "-o", "kernels.so"], cwd=tmp_path, check=True)
    return ctypes.CDLL(str(tmp_path / "kernels.so"))[kernels.symbols["kernel"]], kernels.scratch.get(
        "kernel", 0
    )


def call(kernel, *arrays):
    kernel(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))


def chain(size: int):
    x = te.placeholder((size,), name="x")
    twice = te.compute((size,), lambda i: x[i] + x[i], name="twice")
    return te.create_prim_func([x, te.compute((size,), lambda i: twice[size - 1 - i] * x[i], name="y")])


@pytest.mark.parametrize(("size", "scratch"), [(256, 0), (257, 1088), (1000, 4032)])
def test_large_temporaries_become_scratch(tmp_path, size, scratch):
    kernel, wanted = load(chain(size), tmp_path)
    assert wanted == scratch
    x, y = np.random.default_rng(0).random(size, dtype=np.float32), np.zeros(size, np.float32)
    arguments = (x, y, np.zeros(scratch, np.uint8)) if scratch else (x, y)
    call(kernel, *arguments)
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

    kernel, scratch = load(tile, tmp_path)
    assert scratch == 0
    x, y = np.random.default_rng(0).integers(0, 9, (64, 512)).astype(np.float32), np.zeros(512, np.float32)
    call(kernel, x, y)
    assert np.array_equal(y, x.sum(0))


def test_sums_of_products_are_fused(tmp_path):
    a, b, c = (te.placeholder((8,), name=name) for name in "abc")
    kernel, _ = load(te.create_prim_func([a, b, c, te.compute((8,), lambda i: a[i] * b[i] + c[i])]), tmp_path)
    a, b = np.full(8, 1 + 2**-12, np.float32), np.full(8, 1 - 2**-12, np.float32)
    c, y = np.full(8, -1, np.float32), np.zeros(8, np.float32)
    call(kernel, a, b, c, y)
    assert np.all(y == (-(2.0**-24) if find_target("host").fused else 0))


def test_parallel_loops_run_serially(tmp_path):
    schedule = tvm.s_tir.Schedule(chain(1000))
    for name in ("twice", "y"):
        schedule.parallel(schedule.get_loops(schedule.get_sblock(name))[0])
    kernel, scratch = load(schedule.mod["main"], tmp_path)
    x, y = np.random.default_rng(0).random(1000, dtype=np.float32), np.zeros(1000, np.float32)
    call(kernel, x, y, np.zeros(scratch, np.uint8))
    assert np.array_equal(y, 2 * x[::-1] * x)


def test_only_what_is_called_is_compiled(tmp_path):
    module = tvm.IRModule({"one": chain(16), "two": chain(32)})
    assert dict(compile_kernels(module, ["two", "two"], find_target("host"), "test").symbols) == {
        "two": "test_two"
    }
    assert isinstance(module["one"], tirx.PrimFunc)
