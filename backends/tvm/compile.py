"""From a program to scheduled kernels, and from those to a library for TVM's runtime on this machine."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from tvm import relax, tirx
from tvm.s_tir import Schedule

from mattecompress.backends.tvm.calls import follow, is_kernel_call, with_nodes
from mattecompress.backends.tvm.compute.operands import BROADCAST, CONVOLUTION, ELEMENTWISE, INJECTIVE, OPAQUE
from mattecompress.backends.tvm.freestanding.link import Linker, shared_linker
from mattecompress.backends.tvm.importer.bands import cut_into_bands
from mattecompress.backends.tvm.importer.program import import_program
from mattecompress.backends.tvm.importer.thresholds import join_packings
from mattecompress.backends.tvm.kernels.listed import JOINS_BASE
from mattecompress.backends.tvm.schedule import schedule_module
from mattecompress.backends.tvm.schedules.injective import REDUCTION
from mattecompress.backends.tvm.schedules.stages import child_blocks
from mattecompress.backends.tvm.targets import TARGETS, Target, TargetError
from mattecompress.program import Program

OUTPUT_NAMES = "matte.outputs"
ALIGNMENT = 64
SAVING_NOISE = "Warning: Scope Saving:"


def lower(program: Program, target: Target) -> tvm.IRModule:
    """Scheduled kernels, and a `main` that calls them one after the other with `call_tir`.

    `main` takes the program's inputs and returns its outputs, in their order, as NCHW tensors.

    Raises:
        TargetError: the program computes in float16 and the target does not.
    """
    _require_arithmetic(program, target)
    with target.tvm():
        module = fuse(import_program(arrange(program)))
        module = schedule_module(module, target)
    main = module["main"].with_attr(OUTPUT_NAMES, list(program.output_names))
    module.update_func(module.get_global_var("main"), main)
    return module


def arrange(program: Program) -> Program:
    """The program as it is imported: layers that hand on bits, and bands of the last ones; provenance tells of which."""
    return cut_into_bands(join_packings(program))


def _require_arithmetic(program: Program, target: Target) -> None:
    half = any(program.facts(node).dtype is torch.float16 for node in program.operations())
    if half and not target.half:
        able = ", ".join(name for name, other in TARGETS.items() if other.half)
        raise TargetError(
            f"{program.name} computes in float16 and {target.name} does not: "
            f"build it for {able}, run it with the reference or onnx backend, or leave cast-half out"
        )


def fuse(module: tvm.IRModule) -> tvm.IRModule:
    """Join kernels with the elementwise kernels after them, then those that add to one operand with what computes it."""
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and _keeps_shape(function):
            module.update_func(variable, function.with_attr("op_pattern", ELEMENTWISE))
    fused = _fuse(module)
    adds = any(JOINS_BASE in function.attrs for function in fused.functions.values() if function.attrs)
    return _fuse(_only_bases_join(fused)) if adds else fused


def _fuse(module: tvm.IRModule) -> tvm.IRModule:
    dropping = relax.transform.DeadCodeElimination()
    grouped = tvm.transform.Sequential([relax.transform.FuseOps(), dropping])(module)
    nodes = follow(module, grouped)
    return with_nodes(tvm.transform.Sequential([relax.transform.FuseTIR(), dropping])(grouped), nodes)


def _keeps_shape(function: tirx.PrimFunc) -> bool:
    """Whether a kernel that broadcasts does so between tensors of one shape only."""
    shapes = {tuple(map(int, parameter.ty.shape)) for parameter in function.params}
    return function.attrs["op_pattern"] == BROADCAST and len(shapes) == 1


def _only_bases_join(module: tvm.IRModule) -> tvm.IRModule:
    """Patterns by which nothing is fused but a function marked `JOINS_BASE` with what computes that operand."""
    calls = {binding.var: binding.value for block in module["main"].body.blocks for binding in block.bindings}
    patterns = {}
    for call in calls.values():
        function = _function_of(module, call)
        if function is not None and JOINS_BASE in function.attrs:
            base = calls.get(call.args[1][int(function.attrs[JOINS_BASE])])
            maker = _function_of(module, base)
            patterns[call.args[0]] = ELEMENTWISE
            if base is not None and maker is not None:
                patterns[base.args[0]] = CONVOLUTION if _reduces(maker) else INJECTIVE
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            module.update_func(variable, function.with_attr("op_pattern", patterns.get(variable, OPAQUE)))
    return module


def _function_of(module: tvm.IRModule, value: Any) -> tirx.PrimFunc | None:
    """The kernel that a binding of `main` calls."""
    if is_kernel_call(value):
        return module[value.args[0]]
    return None


def _reduces(function: tirx.PrimFunc) -> bool:
    schedule = Schedule(function)
    return any(
        v.iter_type == REDUCTION for block in child_blocks(schedule) for v in schedule.get(block).iter_vars
    )


@dataclass(frozen=True)
class HostLibrary:
    """A program compiled for this machine and TVM's runtime."""

    executable: relax.VMExecutable
    machine: relax.VirtualMachine
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by name."""
        arguments = [_to_tvm(inputs[name].detach().contiguous()) for name in self.input_names]
        results = self.machine["main"](*arguments)
        return {name: from_dlpack(result) for name, result in zip(self.output_names, results, strict=True)}

    def save(self, path: Path, target: Target, linker: Linker) -> Path:
        """Link a shared library that `tvm.runtime.load_module` and `relax.VirtualMachine` take.

        Raises:
            LinkError: the tool chain failed.
        """
        with _without(SAVING_NOISE):
            self.executable.export_library(str(path), fcompile=shared_linker(target, linker))
        return path


@contextmanager
def _without(noise: str) -> Iterator[None]:
    """Keep lines that hold `noise` from standard error; TVM's runtime writes there past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            buffer.seek(0)
            lines = buffer.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if noise not in line))


def _to_tvm(value: Tensor) -> tvm.runtime.Tensor:
    """The same memory where it is aligned as TVM wants it, else a copy."""
    if value.data_ptr() % ALIGNMENT:
        return tvm.runtime.tensor(value.numpy())
    return tvm.runtime.from_dlpack(value)


def compile_host(module: tvm.IRModule, target: Target) -> HostLibrary:
    """Build what `lower` returned for `target`, which must be this machine."""
    main = module["main"]
    inputs = tuple(str(parameter.name) for parameter in main.params)
    outputs = tuple(str(name) for name in main.attrs[OUTPUT_NAMES])
    executable = tvm.compile(module, target=target.tvm())
    return HostLibrary(executable, relax.VirtualMachine(executable, tvm.cpu()), inputs, outputs)
