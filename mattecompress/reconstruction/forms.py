"""The three forms of a quantized program that reconstruction compares, each made by leaving quantizers out."""

from typing import Literal

from torch import fx, nn

from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.units import Replace, reads_weight

Form = Literal["float", "weights", "quantized"]
"""No quantizer; those of weights only; all."""


def replacement(form: Form, program: Program) -> Replace:
    """What `unit_module` has to replace to give a form."""

    def replace(node: fx.Node) -> nn.Module | None:
        if not isinstance(program.module(node), FakeQuantize):
            return None
        kept = form == "quantized" or (form == "weights" and reads_weight(node))
        return None if kept else nn.Identity()

    return replace
