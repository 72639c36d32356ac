"""From a program to a Relax module: one call per kernel, NHWC inside, NCHW at the boundary."""

from collections.abc import Callable
from typing import Any

import tvm
from torch import fx
from tvm import relax, te

from mattecompress.backends.tvm.calls import with_nodes
from mattecompress.backends.tvm.compute.operands import (
    INJECTIVE,
    OPAQUE,
    View,
    compose,
    emit,
    in_memory,
    storage_shape,
)
from mattecompress.backends.tvm.importer import convolution, elementwise, layout, lowered, structure, tokens
from mattecompress.backends.tvm.importer.absorption import RESIZES, absorb
from mattecompress.backends.tvm.importer.builder import Builder
from mattecompress.backends.tvm.importer.conversion import DTYPE_NAMES, Conversion, Scope
from mattecompress.program import Program

CONVERTERS: dict[Any, Callable[[Scope, fx.Node], Conversion]] = {
    **elementwise.CONVERTERS,
    **convolution.CONVERTERS,
    **structure.CONVERTERS,
    **layout.CONVERTERS,
    **tokens.CONVERTERS,
    **lowered.CONVERTERS,
}
REFUSALS: dict[Any, Callable[[Program, fx.Node], str | None]] = {
    **elementwise.REFUSALS,
    **convolution.REFUSALS,
    **structure.REFUSALS,
    **layout.REFUSALS,
    **tokens.REFUSALS,
    **lowered.REFUSALS,
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
    refusal = REFUSALS.get(node.target)
    return refusal(program, node) if refusal else None


def import_program(program: Program) -> tvm.IRModule:
    """A Relax module whose `main` takes the program's inputs and returns its outputs, in their order, as a tuple.

    Every node must be supported.
    """
    builder = Builder()
    parameters = [
        relax.Var(str(node.target), relax.TensorType(program.facts(node).sizes, _dtype(program, node)))
        for node in program.inputs
    ]
    with builder.function("main", parameters):
        with builder.dataflow():
            scope = Scope(program, builder)
            for node, parameter in zip(program.inputs, parameters, strict=True):
                _enter(scope, node, parameter)
            outputs = builder.emit_output(relax.Tuple(_import_nodes(scope)))
        builder.emit_func_output(outputs)
    return with_nodes(builder.finalize(), builder.nodes)


def _import_nodes(scope: Scope) -> list[relax.Var]:
    """Import node after node; outputs leave as soon as they are computed, so that none waits in memory."""
    absorption = absorb(scope.program.graph)
    outputs = list(scope.program.outputs.values())
    results: dict[fx.Node, relax.Var] = {}
    for node in scope.program.operations():
        scope.in_frame = node in absorption.frame
        with scope.builder.computing(node):
            conversion = CONVERTERS[node.target](scope, node)
            view = conversion.view
            if not conversion.done and node not in absorption:
                view = in_memory(emit(scope.builder, conversion.name, conversion.pattern, view))
            scope.keep(node, view, conversion.as_is)
            if node in outputs and node not in absorption:
                results[node] = emit(scope.builder, "to_nchw", INJECTIVE, _planes(scope, node))
    scope.in_frame = True
    return _leave(scope, outputs, results, absorption.frame)


def _enter(scope: Scope, node: fx.Node, parameter: relax.Var) -> None:
    shape = scope.program.facts(node).sizes
    if len(shape) != 4:
        scope.values[node] = in_memory(parameter)
        return

    def to_nhwc(x: te.Tensor) -> te.Tensor:
        return te.compute(storage_shape(shape), lambda n, h, w, c: x(n, c, h, w), name="to_nhwc")

    scope.planar[node] = View((parameter,), to_nhwc, (in_memory(parameter),))


def _leave(
    scope: Scope, nodes: list[fx.Node], results: dict[fx.Node, relax.Var], frame: frozenset[fx.Node]
) -> list[relax.Var]:
    """The outputs in memory as NCHW, some of which are `results`.

    Those of the frame that share resized rows are computed by one kernel.
    """
    resized = [node for node in dict.fromkeys(nodes) if node in frame and _reads_resize(node, frame)]
    if len({scope.shape(node)[2:] for node in resized}) == 1:
        with scope.builder.computing(*resized):
            variable = emit(scope.builder, "frame", OPAQUE, *(_planes(scope, node) for node in resized))
        for index, node in enumerate(resized):
            results[node] = variable
            if len(resized) > 1:
                results[node] = scope.builder.emit(relax.TupleGetItem(variable, index))
    for node in nodes:
        if node not in results:
            with scope.builder.computing(node):
                results[node] = emit(scope.builder, "to_nchw", INJECTIVE, _planes(scope, node))
    return [results[node] for node in nodes]


def _reads_resize(node: fx.Node, frame: frozenset[fx.Node]) -> bool:
    return node.target in RESIZES or any(
        _reads_resize(source, frame) for source in node.all_input_nodes if source in frame
    )


def _planes(scope: Scope, node: fx.Node) -> View:
    shape, view = scope.shape(node), scope.view(node)
    if len(shape) != 4:
        return compose(lambda x: te.compute(shape, lambda *index: x(*index), name="leave"), [view])
    return compose(
        lambda x: te.compute(shape, lambda n, c, h, w: x(n, h, w, c), name="to_nchw"),
        [view],
    )


def _dtype(program: Program, node: fx.Node) -> str:
    dtype = program.facts(node).dtype
    assert dtype is not None
    return DTYPE_NAMES[dtype]
