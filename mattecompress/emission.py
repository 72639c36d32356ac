"""Compiled files: executables, static libraries, shared objects, ONNX models.

A quantized program has two forms in ONNX. `onnx` is what every other backend runs: integer convolutions over stored
codes, and in ONNX Runtime the same bits as the reference. `qdq` is the program as it was before lowering, float
convolutions between QuantizeLinear and DequantizeLinear: the form that other compilers and the integer kernels of
ONNX Runtime look for. They round in their own places, so that single codes differ.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mattecompress.backends import load_backend
from mattecompress.backends.tvm.freestanding.link import find_linker
from mattecompress.backends.tvm.targets import find_target
from mattecompress.errors import UserError
from mattecompress.preparation import lower, require_fixed_size
from mattecompress.program import Level, Program

EMITTERS = ("exe", "lib", "so", "onnx", "qdq")
PORTABLE = ("onnx", "qdq")


class LoweredError(UserError):
    """A program is past the form that is asked for."""


def emit_files(
    program: Program, target: str, emit: str, folder: Path, linker: str | None = None, strict: bool = False
) -> Iterator[tuple[Path, str]]:
    """Write a program's compiled form into `folder`; yields each path with its size.

    emit: one of EMITTERS; those of PORTABLE have no target.

    Raises:
        LoweredError: `qdq` of a program that is lowered already.
        TargetError, LinkError, UnsupportedError, ResolutionError, MissingExtraError, UnwritableError
    """
    if emit in PORTABLE:
        paths, memory = load_backend("onnx")().compile(_portable(program, emit, strict)).save(folder), ""
    else:
        require_fixed_size(program)
        backend = load_backend("tvm")(target=target, emit=emit, linker=linker)
        find_linker(find_target(target), linker)
        artifact = backend.compile(lower(program, strict))
        paths, memory = _save(artifact, folder)
    for path in paths:
        yield path, f"{path.stat().st_size / 2**20:.2f} MiB{memory if path == paths[0] else ''}"


def _save(artifact: Any, folder: Path) -> tuple[tuple[Path, ...], str]:
    """The files, and the working memory of what was linked."""
    if not hasattr(artifact, "write"):
        return artifact.save(folder), ""
    made = artifact.write(folder)
    plan = made.plan
    return made.paths, (
        f", {plan.arena_megabytes:.1f} MB of working memory and {plan.local_bytes / 1e6:.1f} MB for each further thread"
    )


def _portable(program: Program, emit: str, strict: bool) -> Program:
    if emit == "onnx":
        return lower(program, strict)
    if program.level is Level.LOWERED:
        raise LoweredError(
            f"{program.name} is lowered already: give the program from before, or use --emit onnx"
        )
    return program
