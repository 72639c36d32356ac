"""How near the kernels come to what this core can compute: one thread, run in turn with a probe of each limit.

    python benchmarks/kernel_limits.py              measure, print a table, write kernel_limits.json and .svg

The limits are those of `mattecompress.backends.tvm.limits`. A kernel's rate counts the products that the layer asks
for, ragged channels as they are, so that padding, borders, loads and what follows the sums all show as loss. Winograd's
kernels compute fewer products than the layer asks for, one-bit kernels may look up what the limit counts, and both may
pass it. In its turn a kernel runs several times, as the probe's loop does, so that after the first its operands and
results are in the caches; with --burst 1 each run finds there what the other kernels left.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from tvm import relax

from mattecompress import ops
from mattecompress.backends.tvm.compute.operands import emit, in_memory
from mattecompress.backends.tvm.importer.conversion import Scope
from mattecompress.backends.tvm.importer.convolution import convert
from mattecompress.backends.tvm.kernels.bitserial import emit_binary_conv2d, emit_binary_conv2d_bits
from mattecompress.backends.tvm.kernels.integer import emit_quantized_conv2d
from mattecompress.backends.tvm.limits import HOST, Arithmetic, limit_probe
from mattecompress.backends.tvm.schedule import schedule_module
from mattecompress.capturing.tracing import capture
from mattecompress.files import atomic_path
from mattecompress.ops.binary import choose_word, pack_weight_signs
from mattecompress.signature import Signature
from mattecompress.timing import Work, time_in_turn

sys.path.insert(0, str(Path(__file__).parent))

from results import say, write_json

assert ops
COLOURS: dict[Arithmetic, str] = {"float32": "#5b7db1", "int8": "#d98c3f", "binary": "#5a9367"}


@dataclass(frozen=True)
class Layer:
    """A convolution of stride 1 that keeps its size.

    hands_on: the results of a binary one are the next layer's bits.
    """

    arithmetic: Arithmetic
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
        return f"{self.arithmetic} {shape}{', bits' if self.hands_on else ''}"

    @property
    def products(self) -> int:
        """Multiply-accumulates."""
        return self.height * self.width * self.kernel**2 * self.channels * self.outputs

    @property
    def padding(self) -> list[int]:
        """Rows and columns around the image."""
        return [self.kernel // 2] * 2


LAYERS = (
    Layer("float32", 64, 64, 72, 128),
    Layer("float32", 128, 128, 36, 64),
    Layer("float32", 59, 32, 72, 128),
    Layer("float32", 160, 960, 18, 32, kernel=1),
    Layer("int8", 64, 64, 72, 128),
    Layer("int8", 128, 128, 36, 64),
    Layer("int8", 59, 32, 72, 128),
    Layer("int8", 160, 960, 18, 32, kernel=1),
    Layer("binary", 64, 64, 72, 128),
    Layer("binary", 128, 128, 36, 64),
    Layer("binary", 128, 128, 36, 64, hands_on=True),
    Layer("binary", 256, 256, 18, 32),
    Layer("binary", 59, 32, 72, 128),
    Layer("binary", 35, 16, 288, 512),
    Layer("binary", 160, 960, 18, 32, kernel=1),
    Layer("binary", 160, 960, 18, 32, kernel=1, hands_on=True),
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=30, help="turns of each; default: 30")
    parser.add_argument("--burst", type=int, default=8, help="runs of a kernel in one turn; default: 8")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    document = measure(options.turns, options.burst)
    write_json(options.output, document)
    plot(document, options.output.with_suffix(".svg"))
    print_table(document)
    say(f"written to {options.output} and {options.output.with_suffix('.svg')}")


def measure(turns: int, burst: int) -> dict[str, Any]:
    """Rates in 10^12 products a second, best of `turns`, and their shares of their arithmetic's limit."""
    kinds = {_limit(kind): kind for kind in COLOURS} | {layer.name: layer.arithmetic for layer in LAYERS}
    works, counts = {}, {}
    for kind in COLOURS:
        works[_limit(kind)], counts[_limit(kind)] = limit_probe(kind)
    for layer in LAYERS:
        works[layer.name], counts[layer.name] = repeat(layer_work(layer), burst), burst * layer.products
    times = time_in_turn(works, turns)
    rates = {name: counts[name] / (min(values) * 1e-3) / 1e12 for name, values in times.items()}
    return {
        "turns": turns,
        "burst": burst,
        "kernels": [
            {
                "name": name,
                "arithmetic": kind,
                "rate": rates[name],
                "share": rates[name] / rates[_limit(kind)],
            }
            for name, kind in kinds.items()
        ],
    }


def repeat(work: Work, times: int) -> Work:
    """A work done several times."""

    def works() -> None:
        for _ in range(times):
            work()

    return works


def _limit(arithmetic: str) -> str:
    return f"{arithmetic} limit"


def layer_work(layer: Layer) -> Work:
    """One run of a layer on random values, alone in a library."""
    torch.manual_seed(0)
    image = torch.randn(1, layer.channels, layer.height, layer.width)
    weight = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel)
    prepare = {"float32": _float_layer, "int8": _integer_layer, "binary": _binary_layer}[layer.arithmetic]
    stored, emit_layer = prepare(layer, image, weight)
    with HOST.tvm():
        builder = relax.BlockBuilder()
        variable = relax.Var("image", relax.TensorType(list(stored.shape), str(stored.dtype)[6:]))
        with builder.function("main", [variable]):
            with builder.dataflow():
                result = builder.emit_output(emit_layer(builder, variable))
            builder.emit_func_output(result)
        module = schedule_module(builder.finalize(), HOST)
    machine = relax.VirtualMachine(tvm.compile(module, target=HOST.tvm()), tvm.cpu())
    argument, function = tvm.runtime.tensor(stored.numpy()), machine["main"]
    return lambda: function(argument)


EmitLayer = Callable[[relax.BlockBuilder, relax.Var], relax.Var]
"""Adds a layer's kernel to a function, given the image as it is stored."""


def _float_layer(layer: Layer, image: Tensor, weight: Tensor) -> tuple[Tensor, EmitLayer]:
    convolution = nn.Conv2d(layer.channels, layer.outputs, layer.kernel, padding=layer.padding, bias=False)
    convolution.weight.data = weight
    program = capture(convolution, Signature((("image", tuple(image.shape)),), ("result",)), "layer")
    (node,) = program.operations()

    def emit_layer(builder: relax.BlockBuilder, variable: relax.Var) -> relax.Var:
        scope = Scope(program, builder, {program.inputs[0]: in_memory(variable)})
        conversion = convert(scope, node)
        return emit(builder, conversion.name, conversion.pattern, conversion.view)

    return image.permute(0, 2, 3, 1).contiguous(), emit_layer


def _integer_layer(layer: Layer, image: Tensor, weight: Tensor) -> tuple[Tensor, EmitLayer]:
    codes = (image * 30 + 120).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    signed = (weight * 30).clamp(-127, 127).to(torch.int8)
    kernel = [layer.kernel] * 2
    geometry = [120, 8, kernel, [1, 1], layer.padding, [1, 1], 1]
    node = _call(torch.ops.matte.quantized_conv2d.default, 2, geometry)
    return codes, lambda builder, variable: emit_quantized_conv2d(builder, node, [variable, signed])


def _binary_layer(layer: Layer, image: Tensor, weight: Tensor) -> tuple[Tensor, EmitLayer]:
    word, matte = choose_word(layer.channels), torch.ops.matte
    operands = [pack_weight_signs(weight, word)]
    emit_layer, op = emit_binary_conv2d, matte.binary_conv2d.default
    if layer.hands_on:
        emit_layer, op = emit_binary_conv2d_bits, matte.binary_conv2d_bits.default
        operands += [torch.full((layer.outputs,), value, dtype=torch.int32) for value in (0, 2**20)]
    geometry = [layer.channels, [1, 1], layer.padding, [1, 1], 1, "signs", 0]
    node = _call(op, 1 + len(operands), geometry)
    bits = matte.pack_signs(image, None, 1, word)
    return bits, lambda builder, variable: emit_layer(builder, node, [variable, *operands])


def _call(op: Any, tensors: int, others: list[Any]) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(op, (*(graph.placeholder(f"t{place}") for place in range(tensors)), *others))


def print_table(document: dict[str, Any]) -> None:
    """The table, on standard output."""
    title = f"kernels, one thread, best of {document['turns']} turns of {document['burst']} runs"
    table = Table("layer", title=title, title_justify="left", header_style="bold")
    for column in ("10^12 products/s", "of the limit"):
        table.add_column(column, justify="right")
    for kernel in document["kernels"]:
        table.add_row(kernel["name"], f"{kernel['rate']:.3f}", f"{kernel['share']:.0%}")
    Console().print(table)


def plot(document: dict[str, Any], path: Path) -> None:
    """Each kernel's share of its limit, as SVG."""
    from matplotlib.figure import Figure

    kernels = [kernel for kernel in document["kernels"] if not kernel["name"].endswith("limit")]
    figure = Figure(figsize=(8, 0.3 * len(kernels) + 1.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [kernel["name"] for kernel in kernels],
        [100 * kernel["share"] for kernel in kernels],
        color=[COLOURS[kernel["arithmetic"]] for kernel in kernels],
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("% of the limit")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
