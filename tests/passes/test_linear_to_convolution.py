import pytest
import torch
from torch import nn

from mattecompress.backends.onnx import Onnx
from mattecompress.capturing.tracing import capture
from mattecompress.passes.linear_to_convolution import LinearToConvolution
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.backends.tvm.nets import compiled
from tests.passes.attention_nets import mixer


def program_of(shape: tuple[int | str, ...], layer: nn.Module | None = None) -> Program:
    torch.manual_seed(0)
    return capture((layer or nn.Linear(4, 3)).eval(), Signature((("x", shape),), ("y",)), "linear")


def test_golden(golden) -> None:
    golden(print_program(LinearToConvolution()(program_of((2, 5, 4))).program))


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4), (2, 3, 5, 4), (2, 1, 3, 5, 4), ("n", 3, 4)])
def test_computes_the_same(shape: tuple[int | str, ...]) -> None:
    program, x = program_of(shape), torch.randn([2 if size == "n" else size for size in shape])
    result = LinearToConvolution()(program)
    assert result.notes == "1 linear layers"
    torch.testing.assert_close(result.program.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-6)
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program
    assert not LinearToConvolution()(result.program).modified


def test_a_weight_of_two_layers_stays_one() -> None:
    layer = nn.Linear(4, 4)
    program = program_of((2, 3, 4), nn.Sequential(layer, nn.ReLU(), layer))
    result = LinearToConvolution()(program)
    assert result.notes == "2 linear layers"
    assert len(list(result.program.graph_module.parameters())) == 2


def test_leaves_alone_what_has_no_layers() -> None:
    assert not LinearToConvolution()(program_of((2, 3, 4), nn.ReLU())).modified


@torch.no_grad()
def test_linear_layers_in_integers() -> None:
    """Attention in float between layers of 8 bits: the reference, ONNX Runtime and compiled code differ by single codes."""
    network = mixer(positioned=True, batch=1, blocks=2)
    x = torch.randn(3, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    program = parse_pipeline("linear-to-convolution,quantize").run(network, Context(clips=[{"x": x}]))
    lowered, x = parse_pipeline("lower{strict=true}").run(program), x[:1]
    assert sum("quantized_conv2d" in str(node.target) for node in lowered.operations()) == 4
    expected = lowered.run(x=x)["y"]
    torch.testing.assert_close(expected, network.run(x=x)["y"], rtol=0, atol=0.1)
    for found in (compiled(lowered).run(x=x), Onnx(verify=False).compile(lowered).run(x=x)):
        difference = (found["y"] - expected).abs()
        assert difference.max() < 0.05 and difference.mean() < 1e-3
