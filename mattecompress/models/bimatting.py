"""BiMatting (Xu et al. 2023, "BiMatting: Efficient Video Matting via Binarization") and BiVM (Xu et al. 2025), whose
encoder's shortcuts have learnable factors.

The layout of RVM with the encoder and decoder of `binary_encoder` and `binary_decoder`. BiMatting's names are those of
its published checkpoints. It differs from the published program in that any batch size and single frames work. What
BiVM adds is a reconstruction (R): the symbols of its equations are lost in our copy of the paper.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.models.binary_decoder import BinaryLRASPP, SparseDecoder
from mattecompress.models.binary_encoder import BinaryEncoder
from mattecompress.models.binary_layers import Form, LearnableBias, activated_convolution, convolution
from mattecompress.models.rvm import HIDDEN, Projection, Refiner, build_refiner, lay_out, reduce
from mattecompress.modules.spatial_mask import SpatialMaskConfig

ASPP_CHANNELS = 128
DECODER_CHANNELS = (80, 40, 32, HIDDEN)


class BiMatting(nn.Module):
    """The matting network. Frames are RGB in 0..1; states are None on the first frame and fed back afterwards."""

    optional_parts = ("project_seg", "refiner")
    checkpoints: tuple[str, ...] = ("bimatting",)
    """Names of the models whose checkpoints fit: the 32-bit twin has the same tensors."""

    def __init__(
        self,
        form: Form | None = None,
        refiner: Refiner = "deep_guided_filter",
        mask: SpatialMaskConfig | None = None,
    ) -> None:
        super().__init__()
        self.form = form or Form()
        self.backbone = BinaryEncoder(self.form)
        *shallow, deepest = self.backbone.channels
        self.aspp = BinaryLRASPP(deepest, ASPP_CHANNELS, self.form)
        features = (*shallow, ASPP_CHANNELS)
        self.decoder = SparseDecoder(features, DECODER_CHANNELS, self.form, mask or SpatialMaskConfig())
        self.project_mat = Projection(HIDDEN, 4)
        self.project_seg = Projection(HIDDEN, 1)
        self.refiner = build_refiner(refiner, _slope(self.form))

    def forward(
        self,
        src: Tensor,
        r1: Tensor | None = None,
        r2: Tensor | None = None,
        r3: Tensor | None = None,
        r4: Tensor | None = None,
        downsample_ratio: float = 1,
        segmentation_pass: bool = False,
        coarse_outputs: bool = True,
    ) -> list[Tensor]:
        """Matting: [fgr, pha, fgr_s, pha_s, r1..r4]; segmentation pass: [logits, r1..r4].

        Shapes as of RVM. fgr_s and pha_s are the coarse matte at 1/16 of the reduced frame, which training weighs
        too; `coarse_outputs` false leaves them out.
        """
        frames = src.shape[1] if src.ndim == 5 else None
        fine = src if frames is None else src.flatten(0, 1)
        base = fine if downsample_ratio == 1 else reduce(fine, downsample_ratio)
        f1, f2, f3, f4 = self.backbone(base)
        features, states = (f1, f2, f3, self.aspp(f4)), (r1, r2, r3, r4)
        hidden, coarse, states = self.decoder(base, features, states, frames, self.project_mat.conv)
        if segmentation_pass:
            return [lay_out(self.project_seg(hidden), frames), *states]
        residual, alpha = self.project_mat(hidden).split([3, 1], dim=1)
        if downsample_ratio != 1:
            residual, alpha = self.refiner(fine, base, residual, alpha, hidden)
        mattes = [(residual + fine).clamp(0, 1), alpha.clamp(0, 1)]
        if coarse_outputs:
            mattes += _coarse_matte(coarse, fine)
        return [*(lay_out(matte, frames) for matte in mattes), *states]


class BiVM(BiMatting):
    """BiMatting whose shortcuts have learnable factors a, b and c, the encoder's groups one from their input too (R).

    a starts at 1; b and c are drawn from `seed`.
    Checkpoints of BiMatting load too: their factors are a = 1, b = 1 where a group halves its size and else 0, c = 0.
    """

    checkpoints = ("bimatting", "bivm")

    def __init__(
        self,
        form: Form | None = None,
        refiner: Refiner = "deep_guided_filter",
        mask: SpatialMaskConfig | None = None,
        seed: int = 0,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(form or Form(elastic=True), refiner, mask)
        self.backbone.draw_factors(torch.Generator().manual_seed(seed), init_scale)

    def complete(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of BiMatting with the factors that make BiVM equal to it; any other as it is."""
        factors = {f"backbone.{name}.factor": 1.0 for name, _ in self.backbone.elastic_shortcuts()}
        for index, (stride, _) in enumerate(self.backbone.group_shortcuts()):
            factors[f"backbone.joins.{index}.cross.factor"] = float(stride == 2)
            factors[f"backbone.joins.{index}.whole.factor"] = 0.0
        known = dict(tensors)
        if not known.keys() & factors.keys():
            known |= {name: torch.tensor(value) for name, value in factors.items()}
        return known


def bimatting(refiner: Refiner = "deep_guided_filter") -> BiMatting:
    """BiMatting: 4.2 M one-bit weights."""
    return BiMatting(Form(), refiner)


def bimatting_float(refiner: Refiner = "deep_guided_filter") -> BiMatting:
    """The 32-bit twin of BiMatting: the same architecture and names, nothing binarized."""
    return BiMatting(Form(binary=False), refiner)


def bivm(refiner: Refiner = "deep_guided_filter", seed: int = 0, init_scale: float = 1.0) -> BiVM:
    """BiVM: BiMatting with learnable shortcut factors."""
    return BiVM(Form(elastic=True), refiner, seed=seed, init_scale=init_scale)


def bivm_float(refiner: Refiner = "deep_guided_filter", seed: int = 0, init_scale: float = 1.0) -> BiVM:
    """The 32-bit twin of BiVM, its teacher in mimicking: the same architecture and names, nothing binarized."""
    return BiVM(Form(binary=False, elastic=True), refiner, seed=seed, init_scale=init_scale)


def _slope(form: Form) -> nn.Sequential:
    """The deep guided filter's small network with one-bit layers."""
    return nn.Sequential(
        *activated_convolution(form, 4 * 2 + HIDDEN, HIDDEN, 1),
        LearnableBias(HIDDEN),
        nn.Identity(),
        convolution(form, HIDDEN, HIDDEN, 1),
        nn.BatchNorm2d(HIDDEN),
        LearnableBias(HIDDEN),
        nn.PReLU(HIDDEN),
        nn.Conv2d(HIDDEN, 4, 1),
    )


def _coarse_matte(coarse: Tensor, fine: Tensor) -> list[Tensor]:
    """Foreground and alpha in 0..1 from (N,4,h,w) and the frame (N,3,H,W)."""
    residual, alpha = coarse.split([3, 1], dim=1)
    small = F.interpolate(fine, coarse.shape[-2:], mode="bilinear", align_corners=False)
    return [(residual + small).clamp(0, 1), alpha.clamp(0, 1)]
