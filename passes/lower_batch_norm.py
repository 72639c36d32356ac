"""y = x * scale + shift,  scale = weight / sqrt(var + eps),  shift = bias - mean * scale

of an inference batch norm becomes a product and a sum, each rounded, with constants that are computed in float64 and
rounded once; PyTorch's own kernel fuses the two.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program
from mattecompress.rounding import state_batch_norms


@dataclass(frozen=True)
class LowerBatchNorm(Pass):
    """Write each inference batch norm as a product and a sum; afterwards none is called.

    Behind a convolution of floats `fold-batch-norm` is faster, but rounds otherwise.
    """

    name: ClassVar[str] = "lower-batch-norm"

    def requires(self, program: Program) -> None:
        """They compute in float32 or float64, as their constants do."""
        others = [
            call.name
            for call in program.called_modules(BatchNorm2d)
            if program.facts(call).dtype not in (torch.float32, torch.float64)
        ]
        expect(not others, f"{', '.join(others)} in half precision: run fold-batch-norm before cast-half")

    def ensures(self, program: Program) -> None:
        """None is left."""
        expect(not program.called_modules(BatchNorm2d), "a batch norm is still called")

    def apply(self, program: Program, context: Context) -> str | None:
        """Each call on its own."""
        count = state_batch_norms(program)
        return f"{count} batch norms" if count else None
