import onnx
import pytest
import torch
import torch.nn.functional as F

from mattecompress.backends import UnsupportedError
from mattecompress.backends.onnx import Onnx, export_model, model
from mattecompress.errors import MissingExtraError
from mattecompress.facts import Precision
from mattecompress.program import PassRecord, Program, StatePair
from tests.backends.onnx.nets import compiled, image, program_of


def convolution(x, weight):
    return F.conv2d(x, weight, padding=1).relu()


@pytest.fixture
def program() -> Program:
    return program_of(convolution, ("n", 2, "4*h", 6), weight=image(2, 2, 3, 3))


def test_same_program_same_bytes(program):
    first, second = compiled(program).data, compiled(program.clone()).data
    assert first == second


def test_open_sizes_are_named(program):
    graph = export_model(program).graph
    for value in (graph.input[0], graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["n", 2, "4*h", 6]


def test_facts_and_states_are_in_the_metadata(program):
    (node,) = program.find(torch.ops.aten.conv2d.default)
    node.meta["facts"] = program.facts(node).but(region="encoder", precision=Precision(4, 8))
    program.states = (StatePair("x", "y"),)
    program.history = (PassRecord("quantize{weights=4}", 0, 1.0),)
    exported = export_model(program)
    (written,) = [n for n in exported.graph.node if n.op_type == "Conv"]
    notes = {entry.key: entry.value for entry in written.metadata_props}
    assert (notes["mattecompress.region"], notes["mattecompress.precision"]) == ("encoder", "w4a8")
    properties = {entry.key: entry.value for entry in exported.metadata_props}
    assert properties == {"state.x": "y", "pipeline": "quantize{weights=4}"}


def test_unread_constants_are_left_out(program):
    exported = export_model(program, simplify=False)
    read = {name for node in exported.graph.node for name in node.input}
    assert {value.name for value in exported.graph.initializer} <= read


def test_an_input_that_is_an_output_is_copied():
    program = program_of(lambda x: x * 1.5, (2, 3))
    output = program.graph.output_node()
    output.args = ((program.inputs[0],),)
    program.graph_module.recompile()
    x = image(2, 3)
    assert torch.equal(compiled(program).run(x=x)["y"], x)


def test_one_value_under_two_names():
    program = program_of(lambda x: x * 1.5, (2, 3))
    program.graph.output_node().args = ((program.outputs["y"],) * 2,)
    program.output_names = ("y", "z")
    program.graph_module.recompile()
    x = image(2, 3)
    outputs = compiled(program).run(x=x)
    assert torch.equal(outputs["y"], x * 1.5)
    assert torch.equal(outputs["z"], x * 1.5)


def test_unsupported_operations_are_listed():
    program = program_of(lambda x: torch.cumsum(x, 1) + torch.cumprod(x, 1), (2, 3))
    with pytest.raises(
        UnsupportedError, match=r"%cumsum: operator aten.cumsum.default has no ONNX form; %cumprod"
    ):
        Onnx().compile(program)


def test_unusual_element_types_are_refused():
    program = program_of(lambda x: x.to(torch.bfloat16).float(), (2, 3))
    with pytest.raises(UnsupportedError, match="element type bf16 is not exported"):
        Onnx().compile(program)


def test_a_missing_package_names_the_extra(program, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(model.importlib, "import_module", absent)
    with pytest.raises(
        MissingExtraError, match=r"onnx is not installed: run `pip install 'mattecompress\[onnx\]'`"
    ):
        Onnx().compile(program)


def test_importing_the_backend_imports_no_onnx():
    import subprocess
    import sys

    code = (
        "import sys, mattecompress.backends.onnx; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'onnx', 'onnxruntime', 'onnxsim'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_half_precision_is_kept():
    """In the file; ONNX Runtime's CPU kernels may compute in float32 in between."""
    program = program_of(lambda x: (x.half() * 2).float(), (2, 3))
    types = [n.attribute[0].i for n in export_model(program).graph.node if n.op_type == "Cast"]
    assert types == [onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT]
    x = image(2, 3)
    torch.testing.assert_close(compiled(program).run(x=x)["y"], x * 2, rtol=2**-10, atol=0)
