"""The reference: torch, on the CPU, node by node. What it computes is the truth for every other backend.

In a program that rounds to codes or signs, functions of floats and batch norms round as `mattecompress.rounding` states
it, whether the program is lowered or not: one that takes signs gives the same bits before and after lowering.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, fx

from mattecompress import container
from mattecompress.backends import Artifact, Backend
from mattecompress.program import Program
from mattecompress.rounding import stated


@dataclass(frozen=True)
class ReferenceArtifact(Artifact):
    """The program itself, run without gradients.

    stated: the same with roundings that are stated.
    """

    program: Program
    stated: Program

    @torch.no_grad()
    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by name."""
        return self.stated.run(**inputs)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the program as a `.mcg` file."""
        path = Path(folder) / f"{self.program.name}.mcg"
        container.save(self.program, path)
        return (path,)


@dataclass(frozen=True)
class Reference(Backend):
    """Runs every program."""

    name: ClassVar[str] = "reference"

    def supports(self, program: Program, node: fx.Node) -> str | None:
        """Everything."""
        return None

    def compile(self, program: Program) -> ReferenceArtifact:
        """Nothing is translated."""
        return ReferenceArtifact(program, stated(program))
