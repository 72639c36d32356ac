"""From a program to a Relax module: one call per kernel, NHWC inside, float32 NCHW at the boundary."""

from collections.abc import Callable
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax, te

from mattecompress.backends.tvm import (
    convert_convolution,
    convert_elementwise,
    convert_lowered,
    convert_structure,
)
from mattecompress.backends.tvm.absorption import absorbed_nodes
from mattecompress.backends.tvm.conversion import Conversion, Scope
from mattecompress.backends.tvm.operands import INJECTIVE, View, emit, in_memory, storage_shape
from mattecompress.program import Program

CONVERTERS: dict[Any, Callable[[Scope, fx.Node], Conversion]] = {
    **convert_elementwise.CONVERTERS,
    **convert_convolution.CONVERTERS,
    **convert_structure.CONVERTERS,
    **convert_lowered.CONVERTERS,
}

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.int32: "int32",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int64: "int64",
}


def supports(program: Program, node: fx.Node) -> str | None:
    """None where a node can be imported, else the reason why not."""
    if node.op == "call_module":
        kind = type(program.module(node)).__name__
        return f"{kind} is a module: run `fold-batch-norm` or lower it first"
    if node.target not in CONVERTERS:
        return f"no kernel for {node.target}"
    facts = program.facts(node)
    if not all(isinstance(size, int) for size in facts.shape):
        return "its size is open: run `set-resolution` first"
    if facts.dtype not in DTYPE_NAMES:
        return f"no kernels compute in {facts.dtype}"
    refusal = convert_structure.REFUSALS.get(node.target)
    return refusal(program, node) if refusal else None


def import_program(program: Program) -> tvm.IRModule:
    """A Relax module whose `main` takes the program's inputs and returns its outputs, in their order, as a tuple.

    Every node must be supported.
    """
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(str(node.target), relax.TensorType(program.facts(node).sizes, _dtype(program, node)))
        for node in program.inputs
    ]
    with builder.function("main", parameters):
        with builder.dataflow():
            scope = Scope(program, builder)
            for node, parameter in zip(program.inputs, parameters, strict=True):
                scope.values[node] = _enter(scope, node, parameter)
            outputs = builder.emit_output(relax.Tuple(_import_nodes(scope)))
        builder.emit_func_output(outputs)
    return builder.finalize()


def _import_nodes(scope: Scope) -> list[relax.Var]:
    absorbed = absorbed_nodes(scope.program.graph)
    for node in scope.program.operations():
        _import_node(scope, node, keep=node in absorbed)
    return [_leave(scope, node) for node in scope.program.outputs.values()]


def _import_node(scope: Scope, node: fx.Node, keep: bool) -> None:
    conversion = CONVERTERS[node.target](scope, node)
    if conversion.done or keep:
        scope.values[node] = conversion.view
    else:
        variable = emit(scope.builder, conversion.name, conversion.pattern, conversion.view)
        scope.values[node] = in_memory(variable)


def _enter(scope: Scope, node: fx.Node, parameter: relax.Var) -> View:
    shape = scope.program.facts(node).sizes
    if len(shape) != 4:
        return in_memory(parameter)

    def to_nhwc(x: te.Tensor) -> te.Tensor:
        return te.compute(storage_shape(shape), lambda n, h, w, c: x(n, c, h, w), name="to_nhwc")

    return in_memory(emit(scope.builder, "to_nhwc", INJECTIVE, View((parameter,), to_nhwc)))


def _leave(scope: Scope, node: fx.Node) -> relax.Var:
    shape = scope.program.facts(node).sizes
    view = scope.view(node)
    if len(shape) != 4:
        return emit(scope.builder, "leave", INJECTIVE, view)

    def to_nchw(*sources: te.Tensor) -> te.Tensor:
        x = view.build(*sources)
        return te.compute(shape, lambda n, c, h, w: x(n, h, w, c), name="to_nchw")

    return emit(scope.builder, "to_nchw", INJECTIVE, View(view.sources, to_nchw))


def _dtype(program: Program, node: fx.Node) -> str:
    dtype = program.facts(node).dtype
    assert dtype is not None
    return DTYPE_NAMES[dtype]
