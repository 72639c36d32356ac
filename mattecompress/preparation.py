"""A program made ready for a backend."""

from mattecompress.backends import Artifact, load_backend
from mattecompress.errors import UserError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.propagation import program_symbols

LOWERED_ONLY = ("tvm",)


class OpenResolutionError(UserError):
    """A backend that needs fixed sizes was given a program whose sizes are open."""


def lower(program: Program, strict: bool = False) -> Program:
    """Run the `lower` pipeline: fold batch norms, make trainable forms integers and bits."""
    return parse_pipeline("lower{strict=true}" if strict else "lower").run(program)


def require_fixed_size(program: Program) -> None:
    """Raise `OpenResolutionError` while a size of the program is open."""
    if program_symbols(program):
        raise OpenResolutionError(
            "the program's size is open, and compiled code has a fixed one: add --size 288x512"
        )


def compile_program(program: Program, backend: str, target: str = "host", threads: int = 1) -> Artifact:
    """An artifact that runs `program`; backends that know lowered operations only get it lowered.

    Raises:
        OpenResolutionError: the backend needs fixed sizes.
        UnsupportedError: the backend is unknown or cannot compile some node.
    """
    kind = load_backend(backend)
    if backend not in LOWERED_ONLY:
        return kind(**({"threads": threads} if backend == "onnx" else {})).compile(program)
    require_fixed_size(program)
    return kind(target=target).compile(lower(program))
