"""Every system in the papers' tables, and the ways down to lowered form, as pipelines with options."""

from dataclasses import dataclass
from typing import Protocol

RVM_FLOAT = "exclude=[decoder.decode0.conv.3,project_mat.*] absent=[refiner.conv.0,refiner.conv.3]"
"""Besides the first and the last convolution and the box filter, BiVM leaves these in float; without a reduced
resolution the refiner is not captured, and two of its convolutions still count as one-bit."""


class NamedPipeline(Protocol):
    """A frozen dataclass of options that says which passes it stands for."""

    def passes(self) -> str:
        """The pipeline's text."""


@dataclass(frozen=True)
class Mse:
    """Round-to-nearest quantization with ranges of least squared error: PTQ4VM Table 1, row "MSE"."""

    weights: int = 8
    activations: int = 8

    def passes(self) -> str:
        """Fold, partition, quantize."""
        bits = f"weights={self.weights} activations={self.activations}"
        return f"canonicalize,fold-batch-norm,partition-blocks,quantize{{{bits}}}"


@dataclass(frozen=True)
class RvmBnn:
    """Every convolution but the paper's exceptions in one bit, without scales: BiVM Table II, row "RVM-BNN"."""

    def passes(self) -> str:
        """Partition, binarize."""
        return f"canonicalize,partition-blocks,binarize{{method=bnn {RVM_FLOAT}}}"


@dataclass(frozen=True)
class RvmDorefa:
    """One-bit weights with one scale a layer, activations 0 or 1: BiVM Table II, row "RVM-DoReFa"."""

    def passes(self) -> str:
        """Partition, binarize."""
        return f"canonicalize,partition-blocks,binarize{{method=dorefa {RVM_FLOAT}}}"


@dataclass(frozen=True)
class RvmRecu:
    """Rectified clamp of standardised weights, learnable output scales: BiVM Table II, row "RVM-ReCU"."""

    def passes(self) -> str:
        """Partition, binarize."""
        return f"canonicalize,partition-blocks,binarize{{method=recu {RVM_FLOAT}}}"


@dataclass(frozen=True)
class RvmReact:
    """ReActNet's thresholds and scales, not its shortcuts and RPReLU: BiVM Table II, row "RVM-ReAct"."""

    def passes(self) -> str:
        """Partition, binarize."""
        return f"canonicalize,partition-blocks,binarize{{method=react {RVM_FLOAT}}}"


@dataclass(frozen=True)
class Lower:
    """Down to integers and bits: whatever is still trainable becomes `matte::` operations over packed constants."""

    strict: bool = False

    def passes(self) -> str:
        """Expand and fold what is left, then lower each kind of module."""
        strict = "{strict=true}" if self.strict else ""
        lowering = f"lower-quantized{strict},lower-binary{strict},lower-functions"
        return f"expand-modules,fold-batch-norm,{lowering},canonicalize"


PIPELINES: dict[str, type[NamedPipeline]] = {
    "mse": Mse,
    "rvm-bnn": RvmBnn,
    "rvm-dorefa": RvmDorefa,
    "rvm-recu": RvmRecu,
    "rvm-react": RvmReact,
    "lower": Lower,
}
