"""Small programs for the tests of the ONNX backend, and the comparison of both answers."""

from collections.abc import Callable, Sequence

import onnx
import torch
from torch import Tensor, nn

from mattecompress.analysis.propagation import propagate
from mattecompress.backends.onnx import Onnx, OnnxArtifact
from mattecompress.capturing.tracing import capture
from mattecompress.program import Program
from mattecompress.signature import Shape, Signature


class Apply(nn.Module):
    """A network that is one function of its inputs and of fixed tensors."""

    def __init__(self, function: Callable[..., Tensor], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.names = tuple(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.names})


def program_of(function: Callable[..., Tensor], shape: Shape, **tensors: Tensor) -> Program:
    """The program y = function(x, **tensors) for x of `shape`."""
    return capture(Apply(function, tensors), Signature((("x", shape),), ("y",)), "net")


def compiled(program: Program) -> OnnxArtifact:
    return Onnx(verify=False).compile(program)


def both(program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the program computes, and what ONNX Runtime computes of it."""
    with torch.no_grad():
        expected = program.run(x=x)["y"]
    return expected, compiled(program).run(x=x)["y"]


def assert_same(function: Callable[..., Tensor], x: Tensor, atol: float, **tensors: Tensor) -> None:
    """The function gives the same answer in torch and in ONNX, to `atol` or 1e-6 of a value; 0 means bit for bit."""
    expected, given = both(program_of(function, tuple(x.shape), **tensors), x)
    assert given.dtype is expected.dtype
    torch.testing.assert_close(given, expected, rtol=1e-6 if atol else 0, atol=atol)


def insert_module(program: Program, reader: torch.fx.Node, index: int, module: nn.Module, name: str) -> None:
    """Let argument `index` of a node pass through a module first."""
    program.add_module(name, module)
    with program.graph.inserting_before(reader):
        call = program.graph.call_module(name, (reader.args[index],))
    reader.update_arg(index, call)
    program.graph_module.recompile()
    propagate(program)


def operators(artifact: OnnxArtifact) -> list[str]:
    """The operators of a model in order, those of local functions with their domain."""
    nodes = onnx.load_from_string(artifact.data).graph.node
    return [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes]


def initializers(artifact: OnnxArtifact) -> dict[str, int]:
    """The element type of each stored constant."""
    return {value.name: value.data_type for value in onnx.load_from_string(artifact.data).graph.initializer}


def image(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    """Normal noise in which exact zeros and halves occur."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * spread
    flat = values.flatten()
    specials: Sequence[float] = (0.0, -0.0, 0.5, 1.5, -0.5)
    flat[: len(specials)] = torch.tensor(specials)[: flat.numel()]
    return values
