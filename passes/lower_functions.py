"""sigmoid, tanh, the mean over a plane and bilinear resizing become the operations of those names in `matte::`.

They compute the same; the new ones say how they round. In a program that rounds to codes or signs, the last
place of a float decides which code, so that only a stated rounding gives the same answer on every backend.
"""

from dataclasses import dataclass
from typing import ClassVar

from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.rounding import rounds, state_functions, unstated_functions


@dataclass(frozen=True)
class LowerFunctions(Pass):
    """In a program that rounds, replace functions of floats by those whose rounding is stated; none is left afterwards."""

    name: ClassVar[str] = "lower-functions"

    def ensures(self, program: Program) -> None:
        """No function that rounds as PyTorch pleases is left in a program that rounds."""
        expect(
            not (rounds(program) and unstated_functions(program)),
            "a function without a stated rounding survived",
        )

    def apply(self, program: Program, context: Context) -> str | None:
        """Replace each call."""
        count = state_functions(program) if rounds(program) else 0
        return f"{count} functions with stated rounding" if count else None
