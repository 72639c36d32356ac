"""Static programs and libraries: kernels, a list of calls, weights and a small driver, and no TVM runtime.

A program runs by itself on any machine of its target: `NAME INPUT OUTPUT` from a clip or picture to its matte (see
`NAME --help`). A library is the same without the driver, for other people's programs.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import tvm
from torch import Tensor

from mattecompress.backends.tvm.freestanding.library import (
    CKernel,
    find_ports,
    identifier,
    write_driver,
    write_library,
)
from mattecompress.backends.tvm.freestanding.link import compile_and_archive, compile_and_link, find_linker
from mattecompress.backends.tvm.freestanding.objects import KernelObject, compile_kernels, lower_to_loops
from mattecompress.backends.tvm.freestanding.plan import Plan, TensorSpec, make_plan
from mattecompress.backends.tvm.freestanding.reuse import reuse_memory
from mattecompress.backends.tvm.freestanding.sequence import read_sequence
from mattecompress.backends.tvm.targets import Target
from mattecompress.errors import UserError
from mattecompress.files import atomic_path

SECONDS = 3600
OBJECT = "kernels.o"


class ExecutableError(UserError):
    """A program that cannot become an executable, or an executable that cannot run here."""


class StateNames(Protocol):
    """A recurrent state by the names of its ends."""

    @property
    def input(self) -> str:
        """The input that takes the last frame's state."""

    @property
    def output(self) -> str:
        """The output that gives this frame's state."""


class Interface(Protocol):
    """What emission needs to know of a program besides its kernels; `mattecompress.program.Program` has it."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of `main`'s parameters."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of `main`'s results."""

    @property
    def states(self) -> Sequence[StateNames]:
        """Results that are parameters of the next frame."""


@dataclass(frozen=True)
class LibraryArtifact:
    """A static library and its header; plan: its memory, and its inputs and outputs in order."""

    path: Path
    header: Path
    target: Target
    plan: Plan

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files it consists of."""
        return self.path, self.header


@dataclass(frozen=True)
class ExecutableArtifact:
    """A program on disk.

    plan: its memory, and its inputs and outputs in order; kernels: by name in C, what each was made of; threads: how
    many it runs with.
    """

    path: Path
    target: Target
    plan: Plan
    kernels: Mapping[str, str]
    threads: int = 1

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files it consists of."""
        return (self.path,)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, states among them, by name; through an emulator where the target needs one.

        Raises:
            ExecutableError: an input is missing or has another shape or type, or the program cannot run here.
        """
        unknown = set(inputs) - {spec.name for spec in self.plan.inputs}
        if unknown:
            raise ExecutableError(f"{self.path.name} has no input {min(unknown)}")
        data = b"".join(_to_bytes(spec, inputs.get(spec.name)) for spec in self.plan.inputs)
        with tempfile.TemporaryDirectory() as name:
            source, result = Path(name) / "inputs", Path(name) / "outputs"
            source.write_bytes(data)
            self.execute("--tensors", str(source), str(result), "--threads", str(self.threads))
            return _from_bytes(self.plan.outputs, result.read_bytes())

    def run_clip(self, frames: Tensor) -> Tensor:
        """Mattes (T,1,H,W) of a clip (T,C,H,W), both float32; the program carries its states itself.

        Raises:
            ExecutableError: the program takes other frames, or cannot run here.
        """
        ports = find_ports(self.plan)
        if ports is None:
            raise ExecutableError(f"{self.path.name} takes no picture alone; use run")
        frame, alpha = self.plan.inputs[ports.frame], self.plan.outputs[ports.alpha]
        with tempfile.TemporaryDirectory() as name:
            source, result = Path(name) / "frames.f32", Path(name) / "alpha.f32"
            source.write_bytes(b"".join(_to_bytes(frame, one.unsqueeze(0)) for one in frames))
            self.execute(str(source), str(result), "--threads", str(self.threads))
            values = np.frombuffer(result.read_bytes(), dtype=np.float32).copy()
        return torch.from_numpy(values).reshape(-1, *alpha.shape[1:])

    def execute(self, *arguments: str) -> str:
        """Run the program with these words; its standard output.

        Raises:
            ExecutableError: no emulator is installed for the target, or the program complained.
        """
        command = [*self.emulator(), str(self.path), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExecutableError(f"{self.path.name} does not run: {error}") from error
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"it ended with code {result.returncode}"]
            raise ExecutableError(f"{self.path.name} failed: {lines[0]}")
        return result.stdout

    def emulator(self) -> list[str]:
        """The words before the program's name that make it run on this machine; none for the host's own.

        Raises:
            ExecutableError: this machine cannot run it.
        """
        if self.target.is_host:
            return []
        emulator = self.target.emulator
        if emulator is None or shutil.which(emulator) is None:
            wanted = f"install {emulator} (Debian: qemu-user)" if emulator else "copy it to one"
            raise ExecutableError(f"{self.path.name} runs on {self.target.name} only: {wanted}")
        return [emulator, "-cpu", self.target.emulated_cpu or "max"]


def emit_executable(
    module: tvm.IRModule,
    interface: Interface,
    target: Target,
    folder: Path,
    name: str,
    linker: str | None = None,
    symbols: bool = False,
    threads: int = 1,
) -> ExecutableArtifact:
    """Compile a scheduled module and link it as the static program `folder/name`.

    module: its Relax `main` is a straight sequence of `call_tir` over scheduled PrimFuncs.
    linker: a C compiler to use, else the first that is found.
    symbols: keep the names of the functions in the program, for tools. threads: how many the artifact runs it with.

    Raises:
        PlanError: `main` is something else.
        LibraryError: a name does not fit into C.
        LinkError: no tool chain, or it failed.
    """
    chain, c_name = find_linker(target, linker), identifier(name)
    with tempfile.TemporaryDirectory() as place:
        plan, sources, kernels = prepare(module, interface, target, Path(place), c_name)
        sources += write_driver(Path(place), c_name, name, find_ports(plan))
        compile_and_link(sources, [Path(place) / OBJECT], target, folder / name, chain, symbols)
    return ExecutableArtifact(folder / name, target, plan, kernels.phases(), threads)


def emit_library(
    module: tvm.IRModule,
    interface: Interface,
    target: Target,
    folder: Path,
    name: str,
    linker: str | None = None,
) -> LibraryArtifact:
    """Compile a scheduled module as `folder/libNAME.a` and `folder/NAME.h`; weights are inside.

    Raises:
        PlanError: `main` is no straight sequence of kernel calls.
        LibraryError: a name does not fit into C.
        LinkError: no tool chain, or it failed.
    """
    chain, c_name = find_linker(target, linker), identifier(name)
    path, header = folder / f"lib{name}.a", folder / f"{c_name}.h"
    with tempfile.TemporaryDirectory() as place:
        plan, sources, _ = prepare(module, interface, target, Path(place), c_name)
        compile_and_archive(sources, [Path(place) / OBJECT], target, path, chain)
        with atomic_path(header) as temporary:
            shutil.copy(Path(place) / f"{c_name}.h", temporary)
    return LibraryArtifact(path, header, target, plan)


def prepare(
    module: tvm.IRModule, interface: Interface, target: Target, folder: Path, name: str
) -> tuple[Plan, list[Path], KernelObject]:
    """The plan, and the library's sources and the kernels, written into a folder, these as `OBJECT`."""
    pairs = [(state.input, state.output) for state in interface.states]
    sequence = read_sequence(module, tuple(interface.input_names), tuple(interface.output_names))
    loops = lower_to_loops(module, [call.function for call in sequence.calls], target)
    sequence, loops = reuse_memory(sequence, pairs, loops)
    compiled = compile_kernels(loops, target, f"{name}_kernel")
    shared = {function: kernel.shared for function, kernel in compiled.kernels.items()}
    local = {function: kernel.local for function, kernel in compiled.kernels.items()}
    plan = make_plan(sequence, pairs, shared, local)
    phases = {
        function: CKernel(
            tuple(zip(compiled.symbols[function], (phase.extent for phase in kernel.phases), strict=True))
        )
        for function, kernel in compiled.kernels.items()
    }
    sources = write_library(folder, name, target, plan, phases)
    compiled.write(folder / OBJECT)
    return plan, sources, compiled


def check_input(spec: TensorSpec, value: Tensor | None) -> Tensor:
    """The value, dense and on the CPU.

    Raises:
        ExecutableError: it is missing, or has another shape or type than the program takes.
    """
    if value is None:
        raise ExecutableError(f"input {spec.name} is missing")
    dtype = str(value.dtype).removeprefix("torch.")
    if tuple(value.shape) != spec.shape or dtype != spec.dtype:
        raise ExecutableError(
            f"input {spec.name} is {dtype} {tuple(value.shape)}, expected {spec.dtype} {spec.shape}"
        )
    return value.detach().cpu().contiguous()


def _to_bytes(spec: TensorSpec, value: Tensor | None) -> bytes:
    array: np.ndarray[Any, Any] = check_input(spec, value).numpy()
    return array.tobytes()


def _from_bytes(specs: Sequence[TensorSpec], data: bytes) -> dict[str, Tensor]:
    result, at = {}, 0
    for spec in specs:
        array = np.frombuffer(
            data, dtype=np.dtype(spec.dtype), count=spec.bytes // np.dtype(spec.dtype).itemsize, offset=at
        )
        result[spec.name] = torch.from_numpy(array.copy()).reshape(spec.shape)
        at += spec.bytes
    return result
