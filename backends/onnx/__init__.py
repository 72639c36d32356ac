"""ONNX: a program as a standard model file, run here by ONNX Runtime.

Each ATen operation becomes standard ONNX operators by a literal table (`elementwise`, `shaping`, `spatial`), each
`matte::` operation a call of a local function (`functions`) that keeps its name in viewers.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mattecompress.backends import Backend
from mattecompress.backends.onnx.agreement import require_agreement
from mattecompress.backends.onnx.model import export_model
from mattecompress.backends.onnx.runtime import OnnxArtifact
from mattecompress.backends.onnx.translate import refusal
from mattecompress.program import Program

__all__ = ["Onnx", "OnnxArtifact", "export_model"]


@dataclass(frozen=True)
class Onnx(Backend):
    """Exports programs to ONNX and runs them in ONNX Runtime on the CPU.

    threads: threads of ONNX Runtime within one operation; 0 leaves the choice to it.
    simplify: run onnxsim over the model.
    verify: compare the model with the program on random input before handing it out.
    exact: in a program that rounds to codes or signs, compute as the reference does to the last place that the runtime
        allows; without it, functions and quantize-dequantize pairs run as ONNX Runtime does them fastest.
    """

    threads: int = 1
    simplify: bool = True
    verify: bool = True
    exact: bool = True
    name: ClassVar[str] = "onnx"

    def supports(self, program: Program, node: fx.Node) -> str | None:
        """None where the node has an exact ONNX form, else the reason why not."""
        return refusal(program, node)

    def compile(self, program: Program) -> OnnxArtifact:
        """The model, checked, in a session.

        Raises:
            UnsupportedError: a node has no exact ONNX form.
            MissingExtraError: the `onnx` extra is not installed.
            AgreementError: ONNX Runtime's answer differs from the program's.
        """
        self.check(program)
        model = export_model(program, self.simplify, self.exact)
        data = model.SerializeToString(deterministic=True)
        artifact = OnnxArtifact(program.name, data, self.threads, self.exact, program.states)
        if self.verify:
            require_agreement(program, artifact)
        return artifact
