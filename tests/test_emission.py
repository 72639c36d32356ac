"""Which form of a program each kind of file holds."""

import onnx
import pytest
import torch

from mattecompress.emission import LoweredError, emit_files
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program


@pytest.fixture(scope="module")
def quantized(tiny: Program) -> Program:
    clip = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(5))
    return parse_pipeline("mse").run(tiny, Context(clips=[clip]))


def operators(path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_onnx_is_lowered(quantized: Program, tmp_path) -> None:
    ((path, _),) = emit_files(quantized, "host", "onnx", tmp_path)
    assert {"quantize", "quantized_conv2d", "sigmoid"} <= operators(path)
    assert not {"Conv", "QuantizeLinear"} & operators(path)


def test_qdq_is_not(quantized: Program, tmp_path) -> None:
    ((path, _),) = emit_files(quantized, "host", "qdq", tmp_path)
    assert {"Conv", "QuantizeLinear", "DequantizeLinear"} <= operators(path)


def test_qdq_of_a_lowered_program_is_refused(quantized: Program, tmp_path) -> None:
    lowered = parse_pipeline("lower").run(quantized)
    with pytest.raises(LoweredError, match="lowered already"):
        list(emit_files(lowered, "host", "qdq", tmp_path))
    assert not list(tmp_path.iterdir())
