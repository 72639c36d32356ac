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

from mattecompress.backends.tvm.freestanding.plan import ITEM_BYTES, PlanError, align
from mattecompress.backends.tvm.targets import Target

STACK_BYTES = {"global": 1024, "local": 65536}


@dataclass(frozen=True)
class KernelObject:
    """Compiled kernels. symbols: by function, the C name; scratch: by function, bytes of working memory, if any."""

    module: Any
    symbols: Mapping[str, str]
    scratch: Mapping[str, int]

    def write(self, path: Path) -> None:
        """Write the object file."""
        self.module.write_to_file(str(path))


def compile_kernels(
    module: tvm.IRModule, functions: Iterable[str], target: Target, prefix: str
) -> KernelObject:
    """Compile the named PrimFuncs of a module; C names are `prefix_function`.

    Parallel loops run serially. Float arithmetic is not relaxed.

    Raises:
        PlanError: a kernel allocates memory of a size unknown until it runs.
    """
    kernels = {str(variable.name_hint): function for variable, function in module.functions_items()}
    names = sorted(set(functions))
    lowered = _lower({name: kernels[name] for name in names}, target.tvm())
    symbols, scratch, ready = {}, {}, {}
    for name in names:
        symbols[name] = f"{prefix}_{name}"
        function, size = _hoist_scratch(_with_pointers(lowered[name]), name)
        ready[symbols[name]] = function.with_attr("global_symbol", symbols[name])
        if size:
            scratch[name] = size
    final = tirx.transform.LowerIntrin()(tvm.IRModule(ready))
    if target.fused:
        final = tvm.IRModule(
            {name: _with_fused_products(function) for name, function in final.functions_items()}
        )
    built = tvm.get_global_func("target.build.llvm")(final, target.tvm())
    return KernelObject(built, symbols, scratch)


def _lower(kernels: Mapping[str, tirx.PrimFunc], target: Any) -> tvm.IRModule:
    serial = {name: _without_parallel_loops(function) for name, function in kernels.items()}
    passes = (
        tirx.transform.BindTarget(target.with_host(target)),
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
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
    return tvm.ir.transform.Sequential(passes)(tvm.IRModule(serial))


def _without_parallel_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    def serial(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, serial)))


def _with_pointers(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same function over bare pointers instead of buffers."""
    pointers = [
        tirx.Var(buffer.name, tvm.ir.PointerType(buffer.ty.dtype, "global")) for buffer in function.params
    ]
    bound = [tirx.DeclBuffer(b, data=p) for b, p in zip(function.params, pointers, strict=True)]
    body = tirx.SeqStmt([*bound, function.body])
    return tirx.PrimFunc(pointers, body, None, function.attrs)


def _with_fused_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make every `a * b + c` that may be fused one that is, so that all targets round alike."""
    optional, certain = map(codegen.llvm_lookup_intrinsic_id, ("llvm.fmuladd", "llvm.fma"))

    def fuse(call: tvm.ir.Call) -> Any:
        if getattr(call.op, "name", "") != "tirx.call_llvm_pure_intrin" or int(call.args[0]) != optional:
            return call
        return tirx.call_intrin(call.ty, call.op, tirx.const(certain, "uint32"), *call.args[1:])

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, fuse)))


def _hoist_scratch(function: tirx.PrimFunc, name: str) -> tuple[tirx.PrimFunc, int]:
    """Move allocations too large for the stack into a last argument, if there are any; also their total bytes."""
    scratch = tirx.Var("scratch", tvm.ir.PointerType(tvm.ir.PrimType("uint8"), "global"))
    used = 0

    def hoist(statement: tirx.AllocBuffer) -> Any:
        nonlocal used
        buffer = statement.buffer
        size = _bytes(buffer, name)
        if size <= STACK_BYTES[buffer.scope()]:
            return statement
        start = tirx.call_intrin(
            scratch.ty, "tirx.handle_add_byte_offset", scratch, tirx.const(used, "int32")
        )
        used += align(size)
        pointer = tirx.call_intrin(tvm.ir.PointerType(buffer.ty.dtype, "global"), "tirx.reinterpret", start)
        return tirx.DeclBuffer(buffer, data=pointer)

    body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, hoist))
    if not used:
        return function, 0
    return tirx.PrimFunc([*function.params, scratch], body, None, function.attrs), used


def _bytes(buffer: Any, name: str) -> int:
    item, _, lanes = str(buffer.dtype).partition("x")
    try:
        total = ITEM_BYTES[item] * int(lanes or 1)
        for extent in buffer.shape:
            total *= int(extent)
    except (KeyError, TypeError) as error:
        raise PlanError(f"kernel {name}: cannot tell the size of {buffer.name}, {buffer.dtype}") from error
    return total
