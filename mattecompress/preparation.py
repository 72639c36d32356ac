"""A program made ready for a backend."""

import os

from mattecompress.analysis.memory import live_bytes
from mattecompress.analysis.propagation import program_symbols
from mattecompress.backends import Artifact, load_backend
from mattecompress.errors import UserError
from mattecompress.facts import nearest_multiple, size_step
from mattecompress.interface import frame_node, frame_size
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

LOWERED_ONLY = ("tvm",)


class ResolutionError(UserError):
    """A program's size is open where it must be fixed, or fixed at another one."""


class MemoryShortageError(UserError):
    """A program's values cannot be held by this machine."""


def lower(program: Program, strict: bool = False) -> Program:
    """Run the `lower` pipeline: fold batch norms, make trainable forms integers and bits."""
    return parse_pipeline("lower{strict=true}" if strict else "lower").run(program)


def require_fixed_size(program: Program) -> None:
    """Raise `ResolutionError` while a size of the program is open."""
    if program_symbols(program):
        raise ResolutionError(
            f"the size of {program.name} is open and must be fixed here: add --size 288x512"
        )


def fix_size(program: Program, size: tuple[int, int]) -> Program:
    """The program at (height, width); one that has this size already comes back as it is.

    Raises:
        ResolutionError: it is fixed at another size.
        PreconditionError: its network cannot take this one; the message names the nearest.
    """
    height, width = size
    if program_symbols(program):
        return parse_pipeline(f"set-resolution{{height={height} width={width}}},canonicalize").run(program)
    known = frame_size(program)
    if known != size:
        held = "no frames" if known is None else f"frames of {known[0]}x{known[1]}"
        raise ResolutionError(
            f"{program.name} takes {held}, not {height}x{width}: leave --size out, or capture it without --size"
        )
    return program


def nearest_size(program: Program, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) nearest to `size` that the program can take."""
    height, width = program.facts(frame_node(program)).shape[-2:]
    return _nearest(height, size[0]), _nearest(width, size[1])


def _nearest(axis: int | str, wanted: int) -> int:
    return axis if isinstance(axis, int) else nearest_multiple(wanted, size_step(axis))


def compile_program(
    program: Program, backend: str, target: str = "host", threads: int = 1, exact: bool = True
) -> Artifact:
    """An artifact that runs `program`; backends that know lowered operations only get it lowered.

    threads: of ONNX Runtime and of compiled code; torch has its own setting.
    exact: for ONNX Runtime: round as the reference does; else, as it is fastest.

    Raises:
        ResolutionError: the backend needs fixed sizes.
        UnsupportedError: the backend is unknown or cannot compile some node.
        MissingExtraError: the extra that the backend needs is not installed.
        MemoryShortageError: the backend computes node after node, and more bytes are alive than the machine has.
    """
    kind = load_backend(backend)
    if backend not in LOWERED_ONLY:
        require_memory(program)
        options = {"threads": threads, "exact": exact, "verify": exact} if backend == "onnx" else {}
        return kind(**options).compile(program)
    require_fixed_size(program)
    return kind(target=target, threads=threads).compile(lower(program))


def require_memory(program: Program) -> None:
    """Raise `MemoryShortageError` where activations alive at a node exceed the machine's memory; open sizes pass."""
    alive = {} if program_symbols(program) else live_bytes(program)
    node, needed = max(alive.items(), key=lambda pair: pair[1], default=("", 0))
    if needed > machine_memory():
        needs, has = (f"{value / 2**30:.1f} GiB" for value in (needed, machine_memory()))
        raise MemoryShortageError(
            f"{program.name} has {needs} of values alive at %{node}, this machine {has} of memory: "
            "capture it at a smaller size, or run sdpa{rows=128} or mematte on it where it attends to whole images"
        )


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
