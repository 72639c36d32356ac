"""Every system in the papers' tables, and the ways down to lowered form, as pipelines with options."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from mattecompress.options import format_value

RVM_FLOAT = "exclude=[decoder.decode0.conv.3,project_mat.*] absent=[refiner.conv.0,refiner.conv.3]"
"""Besides the first and the last convolution and the box filter, BiVM leaves these in float; without a reduced
resolution the refiner is not captured, and two of its convolutions still count as one-bit."""


class NamedPipeline(Protocol):
    """A frozen dataclass of options that says which passes it stands for."""

    def passes(self) -> str:
        """The pipeline's text."""


@dataclass(frozen=True)
class Mse:
    """Round-to-nearest quantization with ranges of least squared error: PTQ4VM Table 1, row "MSE".

    equalize: bring channels to like sizes before, our addition.
    """

    weights: int = 8
    activations: int = 8
    equalize: bool = False

    def passes(self) -> str:
        """Fold, partition, quantize."""
        bits = f"{{weights={self.weights} activations={self.activations}}}"
        equalized = f"equalize-channels{bits}," if self.equalize else ""
        return f"canonicalize,fold-batch-norm,partition-blocks,{equalized}quantize{bits}"


Rule = Literal["support_residual", "residual", "xor"]
"""Those of `mattecompress.modules.spatial_mask`, without loading torch."""
Recipe = Literal["fast", "paper"]
"""Minutes on two cores, or the papers' numbers."""

PAPER_ITERATIONS = 20000
AFFINE_EPOCHS = {"fast": 10, "paper": 55}
AFFINE_RATE = 0.02
"""The fast recipe's rate with bits left out: it falls tenfold with every two bits of the coarser quantizer. What suits 4
bits, 0.0002, throws values in 8 bits further than their rounding does."""


@dataclass(frozen=True)
class _Fast:
    """What a method's reconstruction takes in the fast recipe.

    Of settings that cost alike these did best in W4A4, with equalized channels where the method can have them; brecq's
    batch was then cut from 8 to what takes two threads five minutes.
    """

    iterations: int
    batch: int
    scale_rate: float


@dataclass(frozen=True)
class _Reconstruction:
    """Quantization, then rounding learned block by block.

    recipe: fast, which is ours, or the paper's iterations, batch and rates.
    iterations: for each block; none means the recipe's.
    equalize: bring channels to like sizes before, our addition; none means in the fast recipe.
    """

    method: ClassVar[str]
    fast: ClassVar[_Fast]
    weights: int = 8
    activations: int = 8
    recipe: Recipe = "fast"
    iterations: int | None = None
    equalize: bool | None = False

    def passes(self) -> str:
        """As `mse`, then reconstruct."""
        usual = self.fast.iterations if self.recipe == "fast" else PAPER_ITERATIONS
        options = f"iterations={usual if self.iterations is None else self.iterations}"
        if self.recipe == "fast":
            options += f" batch={self.fast.batch} rounding-rate=0.1 scale-rate={self.fast.scale_rate}"
        equalize = self.recipe == "fast" if self.equalize is None else self.equalize
        quantized = Mse(self.weights, self.activations, equalize).passes()
        return f"{quantized},reconstruct-blocks{{method={self.method} {options}}}"


@dataclass(frozen=True)
class Brecq(_Reconstruction):
    """Rounding learned block by block, then activation scales: PTQ4VM Table 1, row "BRECQ".

    recipe: fast, which is ours, or the paper's iterations, batch and rates.
    iterations: for each block; none means the recipe's.
    equalize: bring channels to like sizes before, our addition; none means in the fast recipe.
    """

    method: ClassVar[str] = "brecq"
    fast: ClassVar[_Fast] = _Fast(200, 6, 4e-3)


@dataclass(frozen=True)
class Qdrop(_Reconstruction):
    """Rounding and activation scales learned together, block by block, with drops: PTQ4VM Table 1, row "QDrop".

    recipe: fast, which is ours, or the paper's iterations, batch and rates.
    iterations: for each block; none means the recipe's.
    equalize: bring channels to like sizes before, our addition; none means in the fast recipe.
    """

    method: ClassVar[str] = "qdrop"
    fast: ClassVar[_Fast] = _Fast(600, 1, 4e-4)


@dataclass(frozen=True)
class Ptq4vm(Qdrop):
    """QDrop's reconstruction, then GAC, with OFA where `flow` is given: PTQ4VM, Table 1, row "Ours".

    Unlike the published code, activations have zero points and the last convolution's output is not quantized.

    recipe: fast, which is ours, or the paper's iterations, epochs, batch and rates.
    iterations, epochs: of the two stages; none means the recipe's.
    equalize: bring channels to like sizes before, our addition; none means in the fast recipe.
    flow: none, raft, or dis, which stands in for RAFT and needs the extra `flow`. In the fast recipe it is the error of
        alpha, not alpha itself, that may not change along it.
    flow_checkpoint: weights of RAFT or RAFT-small, under the authors' names, for flow=raft.
    apply_to: what GAC scales and shifts: each layer's output, as the published code does, or its weights, as in the
        paper.
    numbers: GAC's two for each layer, or, our addition, for each channel; none means the latter in the fast recipe,
        where the outputs are scaled.
    target: what GAC aims at: the true alpha where it is known, or the float program's.
    """

    equalize: bool | None = None
    epochs: int | None = None
    flow: Literal["none", "dis", "raft"] = "none"
    flow_checkpoint: str | None = None
    apply_to: Literal["output", "weights"] = "output"
    numbers: Literal["layer", "channel"] | None = None
    target: Literal["truth", "float"] = "truth"

    def passes(self) -> str:
        """As `qdrop`, then calibrate."""
        epochs = AFFINE_EPOCHS[self.recipe] if self.epochs is None else self.epochs
        bits = min(self.weights, self.activations)
        rate = f" rate={AFFINE_RATE / 10 ** (bits / 2):.1g}" if self.recipe == "fast" else ""
        usual = "channel" if self.recipe == "fast" and self.apply_to == "output" else "layer"
        numbers = f" numbers={self.numbers or usual}"
        target = "" if self.target == "truth" else f" target={self.target}"
        weights = (
            "" if self.flow_checkpoint is None else f" flow-checkpoint={format_value(self.flow_checkpoint)}"
        )
        of = " flow-of=error" if self.recipe == "fast" and self.flow != "none" else ""
        options = (
            f"apply-to={self.apply_to}{numbers}{target} flow={self.flow}{weights}{of} epochs={epochs}{rate}"
        )
        return f"{super().passes()},calibrate-affine{{{options}}}"


@dataclass(frozen=True)
class RvmBnn:
    """Every convolution but the paper's exceptions in one bit, without scales: BiVM Table II, row "RVM-BNN"."""

    def passes(self) -> str:
        """Partition, binarize."""
        return f"canonicalize,partition-blocks,binarize{{method=bnn {RVM_FLOAT}}}"


@dataclass(frozen=True)
class RvmDorefa:
    """One-bit weights with one scale a layer, activations 0 or 1: BiVM Table II, row "RVM-DoReFa".

    Our addition: activations of two bits, 0 to 3 thirds.
    """

    activations: Literal[1, 2] = 1

    def passes(self) -> str:
        """Partition, binarize."""
        bits = "" if self.activations == 1 else f" activations={self.activations}"
        return f"canonicalize,partition-blocks,binarize{{method=dorefa {RVM_FLOAT}{bits}}}"


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


SPARSE = "decoder.decode3,decoder.decode2,decoder.decode1,decoder.decode0"
BIMATTING_FLOAT = "exclude=[decoder.decode0.conv.3*,project_mat.*]"
"""Besides the first and the last convolution and the box filter, BiMatting leaves these in float."""
REFINER = "refiner.conv.0,refiner.conv.3"
BENT = f"aspp.aspp1.*,sparsifier.*,decoder.decode3.*,decoder.decode2.*,decoder.decode1.*,{REFINER}"
"""Layers of BiMatting whose activation is shifted, RVM's ReLUs becoming PReLUs."""


@dataclass(frozen=True)
class Bimatting:
    """One-bit encoder of new blocks, decoder under a mask, from an RVM MobileNetV3: BiVM Table II, row "BiMatting".

    Weights that BiMatting shares with no RVM are drawn: the result has to be trained.

    bits: of weights and activations; 32 gives the float twin of the same architecture.
    rule, threshold: of the mask, as of `SpatialMask`.
    """

    shortcuts: ClassVar[str] = "fixed"
    bits: Literal[1, 32] = 1
    rule: Rule = "support_residual"
    threshold: float = 0.01

    def passes(self) -> str:
        """New encoder, mask, biases, bits."""
        mask = f"rule={self.rule} threshold={self.threshold}"
        coarse = "coarse=decoder.decode4 head=project_mat.conv"
        binary = f",binarize{{method=bimatting {BIMATTING_FLOAT} absent=[{REFINER}]}}"
        return (
            f"canonicalize,evolve-encoder{{encoder=backbone shortcuts={self.shortcuts}}},partition-blocks,"
            f"sparsify-decoder{{{coarse} regions=[{SPARSE}] sum=branches {mask}}},"
            f"shift-activations{{{BIMATTING_FLOAT} behind=[{BENT}]}}{binary if self.bits == 1 else ''}"
        )


@dataclass(frozen=True)
class Bivm(Bimatting):
    """BiMatting whose encoder's shortcuts have learnable factors: BiVM Table II, row "BiVM", reconstructed (R).

    bits: of weights and activations; 32 gives the float twin of the same architecture, the teacher in mimicking.
    rule, threshold: of the mask, as of `SpatialMask`; once trained, `calibrate-mask` finds the paper's threshold.
    """

    shortcuts: ClassVar[str] = "elastic"


@dataclass(frozen=True)
class Sdpa:
    """Exact attention that never builds its map: no routing, and the row without token compression of MEMatte Table 6.

    queries: of a tile, as of `rewrite-attention`.
    rows: of a strip, where the decoder is computed strip by strip too, as of `tile-decoder`.
    """

    queries: int = 256
    rows: int | None = None

    def passes(self) -> str:
        """Rewrite."""
        strips = "" if self.rows is None else f",tile-decoder{{rows={self.rows}}}"
        return f"canonicalize,rewrite-attention{{queries={self.queries}}}{strips}"


@dataclass(frozen=True)
class Mematte:
    """Chosen tokens through attention, the others past it: MEMatte Table 6, row "BATR".

    From a ViTMatte; what is new has to be trained. Its published program mattes tile by tile too: `tile-decoder`.

    limit, form, variant: as of `route-tokens`.
    """

    limit: int = 18500
    form: Literal["dynamic", "static"] = "dynamic"
    variant: Literal["code", "paper"] = "code"

    def passes(self) -> str:
        """Route."""
        options = f"limit={self.limit} form={self.form} variant={self.variant}"
        return f"canonicalize,route-tokens{{{options}}}"


@dataclass(frozen=True)
class Tome:
    """Similar tokens merged around attention over the image: MEMatte Table 6, row "ToMe", a reconstruction (R).

    share: as of `merge-tokens`.
    """

    share: float = 0.5

    def passes(self) -> str:
        """Merge."""
        return f"canonicalize,merge-tokens{{share={self.share}}}"


@dataclass(frozen=True)
class Dynamicvit:
    """Fewer tokens in each attention over the image, by a predictor: MEMatte Table 6, row "DynamicViT", reconstructed (R).

    keep: as of `prune-tokens`.
    """

    method: ClassVar[str] = "dynamicvit"
    keep: float = 0.7

    def passes(self) -> str:
        """Prune."""
        return f"canonicalize,prune-tokens{{method={self.method} keep={self.keep}}}"


@dataclass(frozen=True)
class Evit(Dynamicvit):
    """Fewer tokens in each attention over the image, by attention to them: MEMatte Table 6, row "EViT", reconstructed (R).

    keep: as of `prune-tokens`.
    """

    method: ClassVar[str] = "evit"


@dataclass(frozen=True)
class Lower:
    """Down to integers and bits: whatever is still trainable becomes `matte::` operations over packed constants."""

    strict: bool = False

    def passes(self) -> str:
        """Expand and fold what is left, then lower each kind of module."""
        strict = "{strict=true}" if self.strict else ""
        lowering = (
            f"lower-quantized{strict},lower-binary{strict},lower-batch-norm,lower-functions,lower-masks"
        )
        return f"expand-modules,lower-tokens,fold-batch-norm{{exact=true}},{lowering},fold-constants,canonicalize"


PIPELINES: dict[str, type[NamedPipeline]] = {
    "mse": Mse,
    "brecq": Brecq,
    "qdrop": Qdrop,
    "ptq4vm": Ptq4vm,
    "rvm-bnn": RvmBnn,
    "rvm-dorefa": RvmDorefa,
    "rvm-recu": RvmRecu,
    "rvm-react": RvmReact,
    "bimatting": Bimatting,
    "bivm": Bivm,
    "sdpa": Sdpa,
    "mematte": Mematte,
    "tome": Tome,
    "dynamicvit": Dynamicvit,
    "evit": Evit,
    "lower": Lower,
}
