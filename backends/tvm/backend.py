"""The TVM backend: a lowered program of fixed size in, compiled code for a target out."""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import tvm
from torch import Tensor, fx

from mattecompress.backends import Artifact, Backend
from mattecompress.backends.tvm.compile import compile_host, lower
from mattecompress.backends.tvm.freestanding.executable import (
    ExecutableArtifact,
    LibraryArtifact,
    emit_executable,
    emit_library,
)
from mattecompress.backends.tvm.freestanding.link import find_linker
from mattecompress.backends.tvm.freestanding.loaded import LibraryStream, LoadedLibrary, load_library
from mattecompress.backends.tvm.importer import program as importer
from mattecompress.backends.tvm.targets import Target, TargetError, find_target
from mattecompress.program import Program


@dataclass(frozen=True)
class SharedObject(Artifact):
    """Kernels for this machine: run here as they would be deployed, or saved as a library for TVM's runtime."""

    module: tvm.IRModule
    program: Program
    target: Target
    linker: str | None = None
    threads: int = 1

    @cached_property
    def library(self) -> LoadedLibrary:
        """The kernels linked and loaded into this process."""
        return load_library(
            self.module, self.program, self.target, self.program.name, self.linker, self.threads
        )

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by name."""
        return self.library.run(**inputs)

    def over_clips(self) -> LibraryStream:
        """A stream of its own."""
        return self.library.open()

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the library for TVM's runtime into a folder.

        Raises:
            LinkError: no tool chain, or it failed.
        """
        linker = find_linker(self.target, self.linker)
        library = compile_host(self.module, self.target)
        return (library.save(Path(folder) / f"{self.program.name}.so", self.target, linker),)


@dataclass(frozen=True)
class Freestanding(Artifact):
    """Kernels that are still to be linked: as a program or as a static library, neither with a runtime."""

    module: tvm.IRModule
    program: Program
    target: Target
    emit: Literal["exe", "lib"]
    linker: str | None = None
    threads: int = 1

    @classmethod
    def of(cls, program: Program, target: str) -> "Freestanding":
        """The kernels of a lowered program for a target, to be linked as a program."""
        found = find_target(target)
        return cls(lower(program, found), program, found, "exe")

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by a program linked for the occasion; emulated where the target needs it."""
        with tempfile.TemporaryDirectory() as folder:
            return self.link(Path(folder)).run(**inputs)

    def link(self, folder: Path, symbols: bool = False) -> ExecutableArtifact:
        """The program, written into a folder; with the names of its functions or without."""
        name = f"{self.program.name}-{self.target.name}"
        return emit_executable(
            self.module, self.program, self.target, folder, name, self.linker, symbols, self.threads
        )

    def write(self, folder: Path) -> ExecutableArtifact | LibraryArtifact:
        """The program, or the library and its header, written into a folder."""
        if self.emit == "exe":
            return self.link(folder)
        return emit_library(self.module, self.program, self.target, folder, self.program.name, self.linker)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the program, or the library and its header, into a folder."""
        return self.write(Path(folder)).paths


@dataclass(frozen=True)
class Tvm(Backend):
    """Compiles for one target.

    target: a name that `mattecompress targets` lists.
    emit: `so` for TVM's runtime on this machine, `exe` for a static program, `lib` for a static library.
    linker: the C compiler that links, else the first that is found.
    threads: how many compute when the artifact is run from Python; saved programs and libraries are told when they run.

    Raises:
        TargetError: the target is unknown, or `so` was asked for another machine.
    """

    target: str = "host"
    emit: Literal["so", "exe", "lib"] = "so"
    linker: str | None = None
    threads: int = 1
    name: ClassVar[str] = "tvm"

    def __post_init__(self) -> None:
        if self.emit == "so" and not find_target(self.target).is_host:
            raise TargetError(f"--emit so is for this machine; for {self.target} take --emit exe or lib")

    def supports(self, program: Program, node: fx.Node) -> str | None:
        """None where there is a kernel for the node, else the reason why not."""
        return importer.supports(program, node)

    def compile(self, program: Program) -> Artifact:
        """Scheduled kernels for the target; linked when the artifact is saved or run.

        Raises:
            TargetError: the target is unknown, or does not compute what the program does.
            UnsupportedError: some node has no kernel.
        """
        target = find_target(self.target)
        self.check(program)
        module = lower(program, target)
        if self.emit == "so":
            return SharedObject(module, program, target, self.linker, self.threads)
        return Freestanding(module, program, target, self.emit, self.linker, self.threads)
