"""ViTMatte: a plain vision transformer and a decoder that adds detail, from an image and its trimap.

The network is that of Hugging Face's `transformers` (extra `vit`), unchanged. Around it stands what its users do by hand:
the image is normalised, joined with the trimap, padded to multiples of 32, and the matte is cropped again. There are
two customs for that:

    official      mean and deviation of ImageNet; where a side is no multiple of 32, both sides grow to the next one
    huggingface   mean and deviation 0.5; each side grows by itself

Source: Yao et al., "ViTMatte: Boosting Image Matting with Pretrained Plain Vision Transformers", 2023; the published
checkpoints were trained the official way.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

Custom = Literal["official", "huggingface"]

STRIDE = 32
STATISTICS: dict[Custom, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "official": ((123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)),
    "huggingface": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
NAMES = (
    ("backbone.pos_embed", "backbone.embeddings.position_embeddings"),
    ("backbone.patch_embed.proj.", "backbone.embeddings.projection."),
    ("backbone.blocks.", "backbone.encoder.layer."),
    (".attn.", ".attention."),
    ("fusion_blks", "fusion_blocks"),
    (".bn.", ".batch_norm."),
)
"""The authors' names of tensors, and Hugging Face's."""


class ViTMatte(VitMatteForImageMatting):  # type: ignore[misc]
    """Alpha of an image, given what is certain.

    preprocessing: one of the module's two customs.
    keep_known: set alpha to 0 and 1 where the trimap says so, as MEMatte does; ViTMatte leaves what it computed, and
        in training so do both.
    """

    checkpoints: ClassVar[tuple[str, ...]] = ("vitmatte-small",)

    def __init__(
        self, config: VitMatteConfig, preprocessing: Custom = "official", keep_known: bool = False
    ) -> None:
        super().__init__(config)
        self.preprocessing = preprocessing
        self.keep_known = keep_known
        for norm in self.decoder.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.ones_(norm.weight)
        for name, values in zip(("mean", "deviation"), STATISTICS[preprocessing], strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """(N,3,H,W) RGB and (N,1,H,W), 0 background, 1 foreground, between them unknown, all in 0..1; (N,1,H,W)."""
        height, width = image.shape[-2:]
        pixels = torch.cat([(image - self.mean) / self.deviation, trimap], dim=1)
        down, right = padding(height, width, self.preprocessing)
        if down or right:
            pixels = F.pad(pixels, (0, right, 0, down))
        alpha: Tensor = super().forward(pixels).alphas[:, :, :height, :width]
        if self.keep_known and not self.training:
            alpha = torch.where(trimap == 0, 0.0, torch.where(trimap == 1, 1.0, alpha))
        return alpha

    def complete(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under Hugging Face's names, from one under those or the authors'."""
        return {hugging_face_name(name): value for name, value in tensors.items()}


def padding(height: int, width: int, custom: Custom) -> tuple[int, int]:
    """Rows below and columns to the right that an image gets."""
    rests = height % STRIDE, width % STRIDE
    if custom == "official" and any(rests):
        return STRIDE - rests[0], STRIDE - rests[1]
    return -height % STRIDE, -width % STRIDE


def hugging_face_name(name: str) -> str:
    """The name of a tensor in `transformers`, from that or the authors'."""
    if not name.startswith(("backbone.", "decoder.")):
        return name
    for own, theirs in NAMES:
        name = name.replace(own, theirs)
    return name


def configuration(
    width: int, heads: int, blocks: int = 12, window: int = 14, thin: int = 1
) -> VitMatteConfig:
    """A configuration of `transformers`, every third of the blocks with attention over the whole image.

    window: side of the other blocks' windows, in tokens.
    thin: what the decoder's channels are divided by.
    """
    everywhere = range(2, blocks, 3)
    backbone = VitDetConfig(
        num_channels=4,
        image_size=512,
        pretrain_image_size=224,
        patch_size=16,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=blocks,
        use_absolute_position_embeddings=True,
        use_relative_position_embeddings=True,
        window_size=window,
        window_block_indices=[block for block in range(blocks) if block not in everywhere],
        residual_block_indices=list(everywhere),
        out_features=[f"stage{blocks}"],
    )
    return VitMatteConfig(
        backbone_config=backbone,
        hidden_size=width,
        convstream_hidden_sizes=[channels // thin for channels in (48, 96, 192)],
        fusion_hidden_sizes=[channels // thin for channels in (256, 128, 64, 32)],
    )


def tiny_configuration() -> VitMatteConfig:
    """12 blocks of 64 channels and 2 heads, for tests and for training in minutes."""
    return configuration(64, 2, window=4, thin=4)


def tiny(preprocessing: Custom = "official", keep_known: bool = False) -> nn.Module:
    """A ViTMatte of no use but to try things: `tiny_configuration`."""
    return ViTMatte(tiny_configuration(), preprocessing, keep_known)


def small(preprocessing: Custom = "official", keep_known: bool = False) -> nn.Module:
    """ViTMatte-S: 384 channels, 6 heads, 12 blocks."""
    return ViTMatte(configuration(384, 6), preprocessing, keep_known)


def base(preprocessing: Custom = "official", keep_known: bool = False) -> nn.Module:
    """ViTMatte-B: 768 channels, 12 heads, 12 blocks."""
    return ViTMatte(configuration(768, 12), preprocessing, keep_known)
