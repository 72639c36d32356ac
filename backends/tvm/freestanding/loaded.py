"""A program's library in this process: the code that is deployed, called from Python."""

import ctypes
import tempfile
import threading
import weakref
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


class LoadedLibrary:
    """A stream of a library that is loaded here; `run` may be called from any thread, one call at a time runs."""

    def __init__(self, path: Path, name: str, plan: Plan, threads: int) -> None:
        self.plan = plan
        self._lock = threading.Lock()
        library = ctypes.CDLL(str(path))
        create, self._run, destroy = (
            library[f"{name}_{verb}"] for verb in ("create_with_threads", "run", "destroy")
        )
        create.restype, create.argtypes = ctypes.c_void_p, [ctypes.c_uint]
        self._run.restype, self._run.argtypes = None, [ctypes.c_void_p] * 3
        destroy.restype, destroy.argtypes = None, [ctypes.c_void_p]
        self._stream = create(threads)
        if not self._stream:
            raise ExecutableError(
                f"{plan.arena_megabytes:.1f} MB of memory and {threads} threads are not to be had"
            )
        weakref.finalize(self, destroy, self._stream)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, states among them, by name.

        Raises:
            ExecutableError: an input is missing, or has another shape or type.
        """
        given = [check_input(spec, inputs.get(spec.name)) for spec in self.plan.inputs]
        results = [
            torch.from_numpy(np.empty(spec.shape, dtype=np.dtype(spec.dtype))) for spec in self.plan.outputs
        ]
        with self._lock:
            self._run(self._stream, _pointers(given), _pointers(results))
        return {spec.name: result for spec, result in zip(self.plan.outputs, results, strict=True)}


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


def _pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
