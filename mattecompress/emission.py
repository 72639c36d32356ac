"""Compiled files: executables, static libraries, shared objects, ONNX models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mattecompress.backends import load_backend
from mattecompress.backends.tvm.freestanding.link import find_linker
from mattecompress.backends.tvm.targets import find_target
from mattecompress.preparation import lower, require_fixed_size
from mattecompress.program import Program

EMITTERS = ("exe", "lib", "so", "onnx")
LINKED = ("exe", "lib")


def emit_files(
    program: Program, target: str, emit: str, folder: Path, linker: str | None = None, strict: bool = False
) -> Iterator[tuple[Path, str]]:
    """Write a program's compiled form into `folder`; yields each path with its size.

    emit: one of EMITTERS; a model for ONNX has no target.

    Raises:
        TargetError, LinkError, UnsupportedError, ResolutionError, MissingExtraError, UnwritableError
    """
    if emit == "onnx":
        paths, memory = load_backend("onnx")().compile(program).save(folder), ""
    else:
        require_fixed_size(program)
        backend = load_backend("tvm")(target=target, emit=emit, linker=linker)
        if emit in LINKED:
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
