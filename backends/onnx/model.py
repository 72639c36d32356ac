"""ONNX models: put together, simplified, checked; the same program always gives the same bytes."""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mattecompress.backends.onnx import functions
from mattecompress.backends.onnx.graph import ElementType, Initializer, Operation, element_type
from mattecompress.backends.onnx.translate import Translation, translate
from mattecompress.errors import InternalError, MissingExtraError
from mattecompress.program import Program

IR_VERSION = 10


class ExportError(InternalError):
    """onnx or onnxsim rejects a model that was written here: a defect, not bad input."""


def extra(name: str) -> ModuleType:
    """A module of the `onnx` extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name.partition(".")[0], "onnx") from error


def export_model(program: Program, simplify: bool = True, exact: bool = True) -> Any:
    """The program as an `onnx.ModelProto`, checked by `onnx.checker`.

    Inputs and outputs keep their names; symbolic sizes become named dimensions; recurrent states stand in the
    model's metadata as `state.<input> = <output>`. Each node's metadata carries its region, scope and precision.

    simplify: run onnxsim over the model.
    exact: in a program that rounds, write functions as torch computes them.

    Raises:
        MissingExtraError: onnx or onnxsim is not installed.
        RefusalError: a node has no exact ONNX form.
        ExportError: onnx or onnxsim rejects the result.
    """
    onnx = extra("onnx")
    translation = translate(program, exact)
    model = _assemble(program, translation)
    if simplify:
        model = _simplify(model, fuse=not translation.writer.spell_out)
    _annotate(model, program, {operation.output: operation for operation in translation.writer.operations})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker rejects {program.name}: {error}") from error
    return model


def _assemble(program: Program, translation: Translation) -> Any:
    onnx = extra("onnx")
    helper, writer = onnx.helper, translation.writer
    nodes = [_node(operation) for operation in writer.operations]
    constants = [_constant(name, value) for name, value in writer.initializers.items()]
    inputs = [_value(program, str(node.target), node) for node in program.inputs]
    outputs = [_value(program, name, node) for name, node in program.outputs.items()]
    graph = helper.make_graph(nodes, program.name, inputs, outputs, constants)
    needed = functions.closure(list(writer.functions))
    opsets = [helper.make_opsetid("", functions.OPSET)]
    if needed:
        opsets.append(helper.make_opsetid(functions.DOMAIN, functions.VERSION))
    return helper.make_model(
        graph,
        opset_imports=opsets,
        functions=[_function(name) for name in needed],
        ir_version=IR_VERSION,
        producer_name="mattecompress",
    )


def _properties(program: Program) -> dict[str, str]:
    states = {f"state.{pair.input}": pair.output for pair in program.states}
    history = ",".join(record.text for record in program.history)
    return states | ({"pipeline": history} if history else {})


def _node(operation: Operation) -> Any:
    onnx = extra("onnx")
    attributes = {key: _attribute(value) for key, value in sorted(operation.attributes.items())}
    return onnx.helper.make_node(
        operation.kind,
        operation.inputs,
        [*(f"{operation.output}.unread{place}" for place in range(operation.unread)), operation.output],
        name=operation.output,
        domain=operation.domain or None,
        **attributes,
    )


def _attribute(value: Any) -> Any:
    if isinstance(value, ElementType):
        return getattr(extra("onnx").TensorProto, value.name)
    return value


def _function(name: str) -> Any:
    function = extra("onnx.parser").parse_function(functions.source(name))
    own = any(node.domain == functions.DOMAIN for node in function.node)
    if not own:
        del function.opset_import[1:]
    return function


def _constant(name: str, constant: Initializer) -> Any:
    onnx = extra("onnx")
    value = constant.value.contiguous().cpu()
    if not constant.element.endswith("INT4"):
        return onnx.numpy_helper.from_array(value.numpy(), name)
    element = getattr(onnx.TensorProto, constant.element)
    return onnx.helper.make_tensor(name, element, tuple(value.shape), _nibbles(value), raw=True)


def _nibbles(codes: Tensor) -> bytes:
    """ONNX's storage of INT4 and UINT4: two codes a byte over the whole tensor, the first in the low nibble."""
    flat = torch.nn.functional.pad(codes.flatten(), (0, codes.numel() % 2)).to(torch.uint8) & 15
    return bytes((flat[0::2] | flat[1::2] << 4).numpy().tobytes())


def _value(program: Program, name: str, node: torch.fx.Node) -> Any:
    onnx = extra("onnx")
    facts = program.facts(node)
    element = getattr(onnx.TensorProto, element_type(facts.dtype))
    return onnx.helper.make_tensor_value_info(name, element, list(facts.shape))


def _simplify(model: Any, fuse: bool) -> Any:
    """onnxsim keeps local functions, and quantized constants as they are.

    fuse: let it join operations, which then round otherwise.
    """
    simplified, equal = extra("onnxsim").simplify(model, perform_optimization=fuse)
    if not equal:
        raise ExportError(f"onnxsim changed what {model.graph.name} computes")
    return simplified


def _annotate(model: Any, program: Program, operations: dict[str, Operation]) -> None:
    """Write the program's facts into the metadata, in place of what simplification has left there."""
    del model.metadata_props[:]
    for key, value in _properties(program).items():
        model.metadata_props.add(key=key, value=value)
    for function in model.functions:
        del function.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        operation = operations.get(node.output[0])
        notes = operation.notes if operation else {}
        for key, value in sorted(notes.items()):
            node.metadata_props.add(key=f"mattecompress.{key}", value=value)
