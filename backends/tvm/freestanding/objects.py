"""Kernels as one object file of plain C functions that need nothing at run time but, where called, libm.

TVM's own calling convention checks packed arguments and asks a runtime for scratch memory. Here a kernel becomes
`void name(inputs..., outputs..., scratch)` over bare pointers: parameters are rebound to pointers after lowering,
and every large allocation moves into one scratch argument whose size the memory plan knows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import codegen

from mattecompress.backends.tvm.freestanding.phases import Kernel, cut_phases
from mattecompress.backends.tvm.kernels.intrinsics import has_fused_multiply_add
from mattecompress.backends.tvm.parallel import divide_loops
from mattecompress.backends.tvm.targets import Target


@dataclass(frozen=True)
class KernelObject:
    """Compiled kernels, by function; symbols: the C names of their phases."""

    module: Any
    kernels: Mapping[str, Kernel]
    symbols: Mapping[str, tuple[str, ...]]

    def phases(self) -> dict[str, str]:
        """Of each phase, by its C name: the function it was made of, and its number from the second on."""
        return {
            symbol: f"{name} phase {number}" if number else name
            for name, symbols in self.symbols.items()
            for number, symbol in enumerate(symbols)
        }

    def write(self, path: Path) -> None:
        """Write the object file."""
        self.module.write_to_file(str(path))


def lower_to_loops(
    module: tvm.IRModule, functions: Iterable[str], target: Target
) -> dict[str, tirx.PrimFunc]:
    """The named PrimFuncs of a module without blocks, as plain loops over buffers of their shape."""
    given = {str(variable.name_hint): function for variable, function in module.functions_items()}
    chosen = {name: given[name] for name in sorted(set(functions))}
    wanted = target.tvm()
    passes = (
        tirx.transform.BindTarget(wanted.with_host(wanted)),
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
    )
    loops = tvm.ir.transform.Sequential(passes)(tvm.IRModule(chosen))
    return {str(variable.name_hint): function for variable, function in loops.functions_items()}


def compile_kernels(functions: Mapping[str, tirx.PrimFunc], target: Target, prefix: str) -> KernelObject:
    """Compile functions of plain loops; C names are `prefix_function`, and `prefix_function_phaseN` from N = 1 on.

    Float arithmetic is not relaxed.

    Raises:
        PlanError: a kernel allocates memory of a size unknown until it runs.
    """
    lowered = _lower({name: divide_loops(functions[name]) for name in sorted(functions)})
    kernels = {name: cut_phases(lowered[name], name) for name in sorted(functions)}
    symbols = {name: _symbols(f"{prefix}_{name}", len(kernel.phases)) for name, kernel in kernels.items()}
    ready = {
        symbol: phase.function.with_attr("global_symbol", symbol)
        for name, kernel in kernels.items()
        for symbol, phase in zip(symbols[name], kernel.phases, strict=True)
    }
    final = tirx.transform.LowerIntrin()(tvm.IRModule(ready))
    if has_fused_multiply_add(target.tvm()):
        final = tvm.IRModule(
            {name: _with_fused_products(function) for name, function in final.functions_items()}
        )
    built = tvm.get_global_func("target.build.llvm")(final, target.tvm())
    return KernelObject(built, kernels, symbols)


def _symbols(name: str, phases: int) -> tuple[str, ...]:
    """A name for each phase; none for a kernel that has nothing to do, such as one that copies an image onto itself."""
    return (name, *(f"{name}_phase{number}" for number in range(1, phases)))[:phases]


def _lower(functions: Mapping[str, tirx.PrimFunc]) -> tvm.IRModule:
    """The functions over flat buffers, in scalars and vectors."""
    passes = (
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    )
    return tvm.ir.transform.Sequential(passes)(tvm.IRModule(dict(functions)))


def _with_fused_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make every `a * b + c` that may be fused one that is, so that all targets round alike."""
    optional, certain = map(codegen.llvm_lookup_intrinsic_id, ("llvm.fmuladd", "llvm.fma"))

    def fuse(call: tvm.ir.Call) -> Any:
        if getattr(call.op, "name", "") != "tirx.call_llvm_pure_intrin" or int(call.args[0]) != optional:
            return call
        return tirx.call_intrin(call.ty, call.op, tirx.const(certain, "uint32"), *call.args[1:])

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, fuse)))
