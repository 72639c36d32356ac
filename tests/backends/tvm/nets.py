"""Small networks as programs, and what a target makes of them."""

import torch
from torch import Tensor, nn

from mattecompress.backends.tvm.compile import HostLibrary, compile_host, lower
from mattecompress.backends.tvm.targets import find_target
from mattecompress.capturing.tracing import capture
from mattecompress.program import Program
from mattecompress.signature import Signature

HOST = find_target("host")


class Net(nn.Module):
    """A network of one expression over an input and layers."""

    def __init__(self, expression, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.expression = expression

    def forward(self, x: Tensor):
        return self.expression(self, x)


class PairNet(Net):
    """A network of one expression over two inputs and layers."""

    def forward(self, x: Tensor, y: Tensor):
        return self.expression(self, x, y)


def program_of(module: nn.Module, *shapes: tuple[int, ...], outputs: int = 1) -> Program:
    names = ["x", "y", "z"][: len(shapes)]
    inputs = tuple(zip(names, shapes, strict=True))
    return capture(module, Signature(inputs, tuple(f"out{k}" for k in range(outputs))), "net")


def inputs_of(program: Program, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(program.facts(node).sizes, generator=generator)
        for name, node in zip(program.input_names, program.inputs, strict=True)
    }


def compiled(program: Program) -> HostLibrary:
    return compile_host(lower(program, HOST), HOST)


def largest_difference(program: Program) -> float:
    inputs = inputs_of(program)
    with torch.no_grad():
        expected = program.run(**inputs)
    results = compiled(program).run(**inputs)
    assert {name: value.shape for name, value in results.items()} == {
        name: value.shape for name, value in expected.items()
    }
    return max((results[name] - expected[name]).abs().max().item() for name in expected)
