"""How near the binary kernels come to what this core can count: one thread, run in turn with a probe of the limit.

    python benchmarks/binary_kernels.py              measure, print a table, write binary_kernels.json

The limit is measured by a loop whose operands stay in registers: for each vector of bits one exclusive or, one count
of the bits of every byte, one addition. A kernel's rate counts the products that the layer asks for, ragged channels
as they are, so that padding, borders, loads and what follows the sums all show as loss.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from rich.console import Console
from rich.table import Table
from torch import fx
from tvm import relax, te

from mattecompress import ops
from mattecompress.backends.tvm.kernels.bitserial import emit_binary_conv2d, emit_binary_conv2d_bits
from mattecompress.backends.tvm.kernels.intrinsics import count_bytes
from mattecompress.backends.tvm.kernels.tiles import Registers
from mattecompress.backends.tvm.schedule import schedule_module
from mattecompress.backends.tvm.targets import find_target
from mattecompress.benchmark import Work, time_in_turn
from mattecompress.files import atomic_path
from mattecompress.ops.binary import choose_word, pack_weight_signs

HOST = find_target("host")
LIMIT = "limit"
STEPS, REPEATS = 2048, 256


@dataclass(frozen=True)
class Layer:
    """A binary convolution of stride 1 that keeps its size; `hands_on`: its results are the next layer's bits."""

    channels: int
    outputs: int
    height: int
    width: int
    kernel: int = 3
    hands_on: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table."""
        shape = f"{self.kernel}x{self.kernel}, {self.channels} -> {self.outputs}, {self.height}x{self.width}"
        return f"{shape}, bits" if self.hands_on else shape

    @property
    def products(self) -> int:
        """Binary multiply-accumulates."""
        return self.height * self.width * self.kernel**2 * self.channels * self.outputs


LAYERS = (
    Layer(64, 64, 72, 128),
    Layer(128, 128, 36, 64),
    Layer(128, 128, 36, 64, hands_on=True),
    Layer(256, 256, 18, 32),
    Layer(59, 32, 72, 128),
    Layer(35, 16, 288, 512),
    Layer(160, 960, 18, 32, kernel=1),
    Layer(160, 960, 18, 32, kernel=1, hands_on=True),
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30, help="runs of each, in turn; default: 30")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    document = measure(options.runs)
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
    print_table(document)
    sys.stderr.write(f"written to {options.output}\n")


def measure(runs: int) -> dict[str, Any]:
    """Rates in 10^12 products a second, best of `runs`, and their shares of the limit."""
    probe, products = limit_probe()
    works, counts = {LIMIT: probe}, {LIMIT: products}
    for layer in LAYERS:
        works[layer.name], counts[layer.name] = layer_work(layer), layer.products
    times = time_in_turn(works, runs)
    rates = {name: counts[name] / (min(values) * 1e-3) / 1e12 for name, values in times.items()}
    return {
        "runs": runs,
        "rates": rates,
        "shares": {name: rate / rates[LIMIT] for name, rate in rates.items()},
    }


def limit_probe() -> tuple[Work, int]:
    """A loop at the limit, and its products: words from the first-level cache meet weights held in registers."""
    with HOST.tvm() as target:
        registers = Registers.of(target)
        lanes, vectors = registers.bytes // 4, (registers.count - 2) * 2 // 5
        words = te.placeholder((STEPS,), "uint32", name="words")
        weights = te.placeholder((vectors * lanes,), "uint32", name="weights")
        k = te.reduce_axis((0, STEPS), "k")
        counts = te.compute(
            (REPEATS, vectors * lanes),
            lambda r, o: te.sum(count_bytes(words[k] ^ weights[o]), axis=[k]),
            name="counts",
        )
        schedule = tvm.s_tir.Schedule(te.create_prim_func([words, weights, counts]))
        block = schedule.get_sblock("counts")
        local = schedule.cache_write(block, 0, "local")
        repeat, output, step = schedule.get_loops(block)
        vector, lane = schedule.split(output, [vectors, lanes])
        schedule.reorder(repeat, step, vector, lane)
        schedule.reverse_compute_at(local, repeat)
        schedule.vectorize(lane)
        schedule.unroll(vector)
        schedule.decompose_reduction(block, step)
        function = tvm.tirx.build(schedule.mod, target=target)["main"]
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 2**32, size, np.uint32) for size in (STEPS, vectors * lanes)]
    arguments = [
        tvm.runtime.tensor(array) for array in (*arrays, np.zeros((REPEATS, vectors * lanes), "uint32"))
    ]
    return lambda: function(*arguments), REPEATS * STEPS * vectors * lanes * 32


def layer_work(layer: Layer) -> Work:
    """One run of a layer on random bits, alone in a library."""
    word = choose_word(layer.channels)
    generator = torch.Generator().manual_seed(0)
    shape = (layer.outputs, layer.channels, layer.kernel, layer.kernel)
    weight = pack_weight_signs(torch.randn(shape, generator=generator), word)
    image = torch.randn((1, layer.channels, layer.height, layer.width), generator=generator)
    bits = torch.ops.matte.pack_signs(image, None, 1, word).numpy()
    half = layer.kernel // 2
    geometry = [layer.channels, [1, 1], [half, half], [1, 1], 1, "signs", 0]
    limits = [torch.full((layer.outputs,), value, dtype=torch.int32) for value in (0, 2**20)]
    operands = [weight, *limits] if layer.hands_on else [weight]
    function, argument = build(layer.hands_on, bits, operands, geometry), tvm.runtime.tensor(bits)
    return lambda: function(argument)


def build(hands_on: bool, bits: Any, operands: list[torch.Tensor], geometry: list[Any]) -> Callable[..., Any]:
    """The compiled kernel, as a function of the bits."""
    assert ops
    matte = torch.ops.matte
    emit, op = emit_binary_conv2d, matte.binary_conv2d.default
    if hands_on:
        emit, op = emit_binary_conv2d_bits, matte.binary_conv2d_bits.default
    graph = fx.Graph()
    nodes = [graph.placeholder(f"t{place}") for place in range(1 + len(operands))]
    node = graph.call_function(op, (*nodes, *geometry))
    with HOST.tvm():
        builder = relax.BlockBuilder()
        variable = relax.Var("bits", relax.TensorType(list(bits.shape), "uint8"))
        with builder.function("main", [variable]):
            with builder.dataflow():
                result = builder.emit_output(emit(builder, node, [variable, *operands]))
            builder.emit_func_output(result)
        module = schedule_module(builder.finalize(), HOST)
    machine = relax.VirtualMachine(tvm.compile(module, target=HOST.tvm()), tvm.cpu())
    return machine["main"]


def print_table(document: dict[str, Any]) -> None:
    """The table, on standard output."""
    title = f"binary kernels, one thread, best of {document['runs']} runs in turn"
    table = Table("layer", title=title, title_justify="left", header_style="bold")
    for column in ("10^12 products/s", "of the limit"):
        table.add_column(column, justify="right")
    for name, rate in document["rates"].items():
        table.add_row(name, f"{rate:.2f}", f"{document['shares'][name]:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
