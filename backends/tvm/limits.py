"""What this machine could do at most, measured: products a second of each arithmetic, bytes a second of memory.

An arithmetic's limit is a loop whose operands stay in registers or in the nearest cache: for each vector a fused
multiply-add of floats, a dot product of bytes where the core has it, or for bits an exclusive or, one count of the
bits of every byte and one addition; so many sums at once that none waits for the one before it. Memory's limit is a copy, which reads each byte and writes it elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
import tvm
from tvm import te, tirx

from mattecompress.backends.tvm.kernels.intrinsics import accumulate, count_bytes, multiplication, multiply
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.backends.tvm.targets import find_target
from mattecompress.timing import Work

HOST = find_target("host")
STEPS, REPEATS = 2048, 256
COPIES = {1 << 18: 16, 1 << 20: 4, 1 << 22: 1, 1 << 24: 1}
"""Bytes of the copies that are measured, and how often each is made."""

Arithmetic = Literal["float32", "float16", "int8", "binary"]
HALF = HOST.half and not HOST.triple.startswith("x86")
"""Whether compiled code computes in float16; on x86 it converts to float32 and back."""
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", *(("float16",) if HALF else ()), "int8", "binary")
"""Those that have a limit of their own here."""


def limit_probe(arithmetic: Arithmetic) -> tuple[Work, int]:
    """A loop at the limit, and its products: words from the first-level cache meet weights held in registers."""
    with HOST.tvm() as target:
        registers = Registers.of(target)
        probe = _probe(arithmetic, registers.bytes // 4)
        lanes = registers.bytes // np.dtype(probe.dtype).itemsize
        pixels, vectors = sums_at_once(registers.count, probe.rest)
        words = te.placeholder((STEPS, pixels), probe.dtype, name="words")
        weights = te.placeholder((vectors * lanes,), probe.dtype, name="weights")
        k = te.reduce_axis((0, STEPS), "k")
        totals = te.compute(
            (REPEATS, pixels, vectors * lanes),
            lambda _, pixel, o: probe.total(probe.product(words[k, pixel], weights[o]), k),
            name="totals",
        )
        function = tvm.tirx.build(_schedule(words, weights, totals, vectors, lanes), target=target)["main"]
    generator = np.random.default_rng(0)
    sizes = ((STEPS, pixels), vectors * lanes)
    arrays = [generator.integers(0, 2**10, size).astype(probe.dtype) for size in sizes]
    results = np.zeros((REPEATS, pixels, vectors * lanes), probe.dtype)
    arguments = [tvm.runtime.tensor(array) for array in (*arrays, results)]
    return lambda: function(*arguments), STEPS * results.size * probe.products


def sums_at_once(registers: int, rest: int) -> tuple[int, int]:
    """Pixels and vectors of weights whose sums, with the weights and `rest` others, fit the registers: most sums."""
    fitting = [
        (pixels, vectors)
        for pixels in range(1, 5)
        for vectors in range(1, registers)
        if pixels * vectors + vectors + rest <= registers
    ]
    return max(fitting, key=prod)


def copy_probe(size: int, repeats: int) -> tuple[Work, int]:
    """A copy at which `size` bytes are read and written, half of them each, `repeats` times; and all its bytes.

    After the first time they come from the nearest cache that holds them all, as a kernel's operands do at best when
    the kernel before it has just written them: no kernel that moves as much can be faster.
    """
    source = torch.ones(size // 8)
    copy = torch.empty_like(source)

    def work() -> None:
        for _ in range(repeats):
            copy.copy_(source)

    return work, repeats * size


@dataclass(frozen=True)
class Probe:
    """What one lane does in a step of a limit's loop: of 32 bits, of 16 for float16.

    product: of two lanes, which is `products` products. total: of such over the loop's steps.
    rest: registers beside those of sums and weights.
    """

    dtype: str
    products: int
    rest: int
    product: Callable[[Any, Any], Any]
    total: Callable[[Any, Any], Any]


def _probe(arithmetic: Arithmetic, lanes: int) -> Probe:
    if arithmetic in ("float32", "float16"):
        return Probe(arithmetic, 1, 1, lambda a, b: a * b, te.sum)
    if arithmetic == "binary":
        return Probe("uint32", 32, 5, lambda a, b: count_bytes(a ^ b), te.sum)
    kind = multiplication(HOST.tvm(), lanes, 0)
    add = te.comm_reducer(accumulate, lambda dtype: tirx.const(0, dtype), name="accumulate")
    return Probe(
        "int32", 4, 3, lambda a, b: multiply(kind, a, b), lambda value, axis: add(value, axis=[axis])
    )


def _schedule(words: te.Tensor, weights: te.Tensor, totals: te.Tensor, vectors: int, lanes: int) -> Any:
    schedule = tvm.s_tir.Schedule(te.create_prim_func([words, weights, totals]))
    block = schedule.get_sblock("totals")
    local = schedule.cache_write(block, 0, "local")
    repeat, pixel, output, step = schedule.get_loops(block)
    vector, lane = schedule.split(output, [vectors, lanes])
    schedule.reorder(repeat, step, pixel, vector, lane)
    schedule.reverse_compute_at(local, repeat)
    schedule.vectorize(lane)
    schedule.unroll(vector)
    schedule.unroll(pixel)
    schedule.decompose_reduction(block, step)
    return schedule.mod
