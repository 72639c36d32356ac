"""Laying out constant weights for the kernels that read them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax, tirx

from mattecompress.backends.tvm.schedules.convolution import Packing


@dataclass(frozen=True)
class PackedFunction:
    """A kernel, and the layouts it expects of its parameters."""

    function: tirx.PrimFunc
    packings: tuple[Packing, ...]


def pack(weight: np.ndarray[Any, Any], tile: int) -> np.ndarray[Any, Any]:
    """(KH,KW,I,O) to (O/tile,KH,KW,I,tile)."""
    rows, columns, inputs, outputs = weight.shape
    tiled = weight.reshape(rows, columns, inputs, outputs // tile, tile)
    return np.ascontiguousarray(tiled.transpose(3, 0, 1, 2, 4))


def replace_functions(module: tvm.IRModule, functions: dict[ir.GlobalVar, PackedFunction]) -> tvm.IRModule:
    """The module with its kernels replaced, and the constants that `main` passes to them laid out to match."""
    mutator = _Replacer(functions)
    main = mutator.visit_expr(module["main"])
    return mutator.finish(main)


@relax.expr_functor.mutator
class _Replacer(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, functions: dict[ir.GlobalVar, PackedFunction]) -> None:
        super().__init__(None)
        self.functions = {str(variable.name_hint): packed for variable, packed in functions.items()}
        self.variables: dict[str, ir.GlobalVar] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != ir.Op.get("relax.call_tir"):
            return call
        name = str(call.args[0].name_hint)
        packed = self.functions[name]
        if name not in self.variables:
            self.variables[name] = self.builder_.add_func(packed.function.without_attr("global_symbol"), name)
        arguments = list(call.args[1].fields)
        for packing in packed.packings:
            weight = arguments[packing.parameter].value.numpy()
            arguments[packing.parameter] = relax.const(pack(weight, packing.tile))
        return relax.Call(call.op, [self.variables[name], relax.Tuple(arguments)], call.attrs, call.ty_args)

    def finish(self, main: relax.Function) -> tvm.IRModule:
        self.builder_.add_func(main, "main")
        return self.builder_.get()
