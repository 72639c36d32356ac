"""A program's library in this process: the code that is deployed, called from Python."""

import ctypes
import tempfile
import threading
import weakref
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import tvm
from torch import Tensor

from mattecompress.backends.tvm.freestanding.executable import (
    OBJECT,
    ExecutableError,
    Interface,
    check_input,
    prepare,
)
from mattecompress.backends.tvm.freestanding.library import identifier
from mattecompress.backends.tvm.freestanding.link import compile_and_share, find_linker
from mattecompress.backends.tvm.freestanding.plan import Plan
from mattecompress.backends.tvm.targets import Target


class LibraryStream:
    """One clip in a library: its memory, its threads and, where the caller leaves them to it, its states.

    Raises:
        ExecutableError: memory is short.
    """

    def __init__(self, library: "LoadedLibrary") -> None:
        self.plan, self._functions = library.plan, library.functions
        self._stream = self._functions.create(library.threads)
        if not self._stream:
            raise ExecutableError(
                f"{self.plan.arena_megabytes:.1f} MB of memory and {library.threads} threads are not to be had"
            )
        weakref.finalize(self, self._functions.destroy, self._stream)

    def reset(self) -> None:
        """Forget the past: zero states."""
        self._functions.reset(self._stream)

    def step(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Every output that is no state, from every input that is none; the states move on.

        Raises:
            ExecutableError: an input is missing, or has another shape or type.
        """
        states = self.plan.states
        return self._frame(inputs, {state.input for state in states}, {state.output for state in states})

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, states among them.

        Raises:
            ExecutableError: an input is missing, or has another shape or type.
        """
        return self._frame(inputs, set(), set())

    def _frame(
        self, inputs: Mapping[str, Tensor], own_inputs: Container[int], own_outputs: Container[int]
    ) -> dict[str, Tensor]:
        """The outputs from the inputs, by name, but those that are the stream's own."""
        given = [
            None if index in own_inputs else check_input(spec, inputs.get(spec.name))
            for index, spec in enumerate(self.plan.inputs)
        ]
        results = [
            None if index in own_outputs else torch.from_numpy(np.empty(spec.shape, np.dtype(spec.dtype)))
            for index, spec in enumerate(self.plan.outputs)
        ]
        self._functions.run(self._stream, _pointers(given), _pointers(results))
        named = zip(self.plan.outputs, results, strict=True)
        return {spec.name: result for spec, result in named if result is not None}


class _Functions:
    """The library's C interface."""

    def __init__(self, path: Path, name: str) -> None:
        library = ctypes.CDLL(str(path))
        self.create = library[f"{name}_create_with_threads"]
        self.create.restype, self.create.argtypes = ctypes.c_void_p, [ctypes.c_uint]
        self.run, self.reset, self.destroy = (
            library[f"{name}_{verb}"] for verb in ("run", "reset", "destroy")
        )
        for function, pointers in ((self.run, 3), (self.reset, 1), (self.destroy, 1)):
            function.restype, function.argtypes = None, [ctypes.c_void_p] * pointers


class LoadedLibrary:
    """A library that is loaded here; `run` may be called from any thread, one call at a time runs."""

    def __init__(self, path: Path, name: str, plan: Plan, threads: int) -> None:
        self.plan, self.threads = plan, threads
        self.functions = _Functions(path, name)
        self._lock = threading.Lock()

    def open(self) -> LibraryStream:
        """A stream of its own, for one clip at a time.

        Raises:
            ExecutableError: memory is short.
        """
        return LibraryStream(self)

    @cached_property
    def _shared(self) -> LibraryStream:
        return self.open()

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, states among them, by name.

        Raises:
            ExecutableError: memory is short, or an input is missing, or has another shape or type.
        """
        with self._lock:
            return self._shared.run(**inputs)


def load_library(
    module: tvm.IRModule,
    interface: Interface,
    target: Target,
    name: str,
    linker: str | None = None,
    threads: int = 1,
) -> LoadedLibrary:
    """Compile a scheduled module for this machine, link it and load it.

    Raises:
        PlanError: `main` is no straight sequence of kernel calls.
        LibraryError: a name does not fit into C.
        LinkError: no tool chain, or it failed.
        ExecutableError: memory is short.
    """
    chain, c_name = find_linker(target, linker), identifier(name)
    with tempfile.TemporaryDirectory() as place:
        plan, sources, _ = prepare(module, interface, target, Path(place), c_name)
        path = Path(place) / f"{c_name}.so"
        compile_and_share(sources, [Path(place) / OBJECT], target, path, chain)
        return LoadedLibrary(path, c_name, plan, threads)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors)
    )
