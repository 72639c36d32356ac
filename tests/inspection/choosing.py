"""Small networks that compute something only in places."""

import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.routed_attention import Form, RoutedAttention, RoutedAttentionConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.modules.token_router import TokenRouter, TokenRouterConfig
from mattecompress.program import Program
from mattecompress.signature import Signature

HEIGHT, WIDTH = 8, 12


class Masked(nn.Module):
    """A convolution under a mask of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.close = nn.Conv2d(3, 3, 3, padding=1)
        self.mask = SpatialMask(SpatialMaskConfig())

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x[:, :1, ::2, ::2])
        wide = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False)
        return self.close(x) * wide + x


class Routed(nn.Module):
    """Attention for at most 40 of the pixels."""

    def __init__(self, form: Form = "dynamic") -> None:
        super().__init__()
        self.widen = nn.Linear(3, 8)
        self.router = TokenRouter(TokenRouterConfig(8))
        self.attention = RoutedAttention(RoutedAttentionConfig(8, 2, limit=40, form=form))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.widen(x.permute(0, 2, 3, 1))
        return self.attention(tokens, tokens, self.router(tokens))


def program_of(net: nn.Module, height: int = HEIGHT, width: int = WIDTH) -> Program:
    return capture(net.eval(), Signature((("x", (1, 3, height, width)),), ("y",)), "net")
