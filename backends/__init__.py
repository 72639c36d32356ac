"""Backends: a program in, an artifact that runs out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor, fx

from mattecompress.errors import UserError
from mattecompress.extras import import_part
from mattecompress.options import nearest
from mattecompress.program import Program
from mattecompress.running.stream import Runner

BACKENDS = {
    "reference": "reference:Reference",
    "onnx": "onnx:Onnx",
    "tvm": "tvm.backend:Tvm",
}


class UnsupportedError(UserError):
    """A backend cannot compile a program; the message lists the nodes and the reasons."""


class Artifact(ABC):
    """Something compiled that runs."""

    @abstractmethod
    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by name."""

    @abstractmethod
    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the artifact's files into a folder and return their paths."""

    def over_clips(self) -> Runner:
        """How a `Stream` runs it fastest."""
        return self.run


class Backend(ABC):
    """Compiles programs; its options are the fields of a frozen dataclass."""

    name: ClassVar[str]

    @abstractmethod
    def supports(self, program: Program, node: fx.Node) -> str | None:
        """None where the backend can compile a node, else the reason why not."""

    @abstractmethod
    def compile(self, program: Program) -> Artifact:
        """The artifact.

        Raises:
            UnsupportedError: some node is not supported.
        """

    def check(self, program: Program) -> None:
        """Raise `UnsupportedError` with every node that the backend cannot compile."""
        reasons = {f"%{node.name}": self.supports(program, node) for node in program.operations()}
        refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
        if refused:
            shown = "; ".join(refused[:5]) + (f"; and {len(refused) - 5} more" if len(refused) > 5 else "")
            raise UnsupportedError(f"{self.name} cannot compile {program.name}: {shown}")


def load_backend(name: str) -> Callable[..., Backend]:
    """The class of a backend; it takes the backend's own options.

    Raises:
        UnsupportedError: there is no such backend.
        MissingExtraError: the extra that the backend needs is not installed.
    """
    if name not in BACKENDS:
        raise UnsupportedError(f"unknown backend '{name}'{nearest(name, BACKENDS)}")
    module, _, kind = BACKENDS[name].partition(":")
    found: Callable[..., Backend] = getattr(import_part(f"mattecompress.backends.{module}"), kind)
    return found
