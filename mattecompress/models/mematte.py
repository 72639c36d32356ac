"""MEMatte: ViTMatte whose global blocks send chosen tokens through attention and the others past it.

Source: MEMatte, "Memory Efficient Matting with Adaptive Token Routing", AAAI 2025. Where the paper and the published
program differ, the program is followed, since the checkpoints do; `variant` gives the paper's router and branch. The
program also mattes tile by tile, which is a pass of its own here (`tile-decoder`), and replaces known pixels.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from transformers import VitMatteConfig
from transformers.models.vitdet.modeling_vitdet import VitDetLayer

from mattecompress.models.vitmatte import Custom, ViTMatte, configuration, tiny_configuration
from mattecompress.modules.routed_attention import Form, RoutedAttention, RoutedAttentionConfig
from mattecompress.modules.token_refinement import TokenRefinement, TokenRefinementConfig
from mattecompress.modules.token_router import TokenRouter, TokenRouterConfig, Variant


class RoutedLayer(nn.Module):
    """A transformer's block whose attention is for chosen tokens; relative positions go.

    layer: the block whose other parts it takes.
    """

    def __init__(self, layer: VitDetLayer, attention: RoutedAttentionConfig, variant: Variant) -> None:
        super().__init__()
        self.norm1 = layer.norm1
        self.router = TokenRouter(TokenRouterConfig(attention.channels, variant))
        self.refinement = TokenRefinement(TokenRefinementConfig(attention.channels, variant))
        self.attention = RoutedAttention(attention)
        self.norm2, self.mlp, self.residual = layer.norm2, layer.mlp, layer.residual

    def forward(self, hidden: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        """(N,C,H,W) to the same."""
        x = hidden.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm1(x), self.refinement(x), self.router(x))
        x = x + self.mlp(self.norm2(x))
        return (self.residual(x.permute(0, 3, 1, 2)),)


class MEMatte(ViTMatte):
    """Alpha of an image, given what is certain.

    preprocessing, keep_known: as of `ViTMatte`.
    limit, form: as of `RoutedAttention`. variant: as of `TokenRouter` and `TokenRefinement`.
    """

    checkpoints: ClassVar[tuple[str, ...]] = ("mematte-small",)

    def __init__(
        self,
        config: VitMatteConfig,
        preprocessing: Custom = "official",
        keep_known: bool = True,
        limit: int = 18500,
        form: Form = "dynamic",
        variant: Variant = "code",
    ) -> None:
        super().__init__(config, preprocessing, keep_known)
        heads = config.backbone_config.num_attention_heads
        routed = RoutedAttentionConfig(config.hidden_size, heads, limit, form)
        layers = self.backbone.encoder.layer
        self.routed = [index for index, layer in enumerate(layers) if index and not layer.window_size]
        for index in self.routed:
            layers[index] = RoutedLayer(layers[index], routed, variant)

    def complete(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under our names from the authors', whether or not a teacher stands beside."""
        own = {name: value for name, value in tensors.items() if not name.startswith("teacher_backbone.")}
        return super().complete({_own_name(name, self.routed): value for name, value in own.items()})


def _own_name(name: str, routed: list[int]) -> str:
    router = re.match(r"backbone\.routers\.(\d+)\.", name)
    if router and int(router[1]) < len(routed):
        name = f"backbone.blocks.{routed[int(router[1])]}.router.{name[router.end() :]}"
    return name.replace(".efficient_block.", ".refinement.")


def tiny(preprocessing: Custom = "official", keep_known: bool = True, limit: int = 18500) -> nn.Module:
    """A MEMatte of no use but to try things, on such a ViTMatte."""
    return MEMatte(tiny_configuration(), preprocessing, keep_known, limit)


def small(preprocessing: Custom = "official", keep_known: bool = True, limit: int = 18500) -> nn.Module:
    """MEMatte on ViTMatte-S."""
    return MEMatte(configuration(384, 6), preprocessing, keep_known, limit)


def base(preprocessing: Custom = "official", keep_known: bool = True, limit: int = 18500) -> nn.Module:
    """MEMatte on ViTMatte-B."""
    return MEMatte(configuration(768, 12), preprocessing, keep_known, limit)
