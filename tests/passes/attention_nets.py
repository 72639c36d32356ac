"""A network of one or two attentions over a 3x4 grid, written as papers write it."""

from functools import cache

import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.token_router import TokenRouter
from mattecompress.program import Program
from mattecompress.signature import Signature


class Mixer(nn.Module):
    """One attention, with or without relative positions, or with a further offset that no pass knows."""

    def __init__(self, positioned: bool, masked: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.vertical = nn.Parameter(torch.randn(3, 3, 4)) if positioned else None
        self.horizontal = nn.Parameter(torch.randn(4, 4, 4))
        self.mask = nn.Parameter(torch.eye(12)) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        qkv = self.qkv(self.norm(x)).reshape(batch, 12, 3, 2, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, -1, 12, 4).unbind(0)
        logits = (q * 0.5) @ k.transpose(-2, -1)
        if self.vertical is not None:
            grid = q.reshape(-1, 3, 4, 4)
            up = torch.einsum("bhwc,hkc->bhwk", grid, self.vertical)
            side = torch.einsum("bhwc,wkc->bhwk", grid, self.horizontal)
            logits = (logits.view(-1, 3, 4, 3, 4) + up[..., None] + side[..., None, :]).view(-1, 12, 12)
        if self.mask is not None:
            logits = logits + self.mask
        y = (logits.softmax(-1) @ v).reshape(batch, 2, 3, 4, 4).permute(0, 2, 3, 1, 4).reshape(batch, 3, 4, 8)
        return x + self.proj(y)


@cache
def mixer(positioned: bool = False, masked: bool = False, batch: int | str = 2, blocks: int = 1) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(*(Mixer(positioned, masked) for _ in range(blocks))).eval()
    return capture(net, Signature((("x", (batch, 3, 4, 8)),), ("y",)), "mixer")


def whole_values(program: Program, block: int = 0) -> dict[str, Tensor]:
    """The tensors of one block, by their last names."""
    prefix = f"{block}."
    tensors = program.state_dict().items()
    return {name.removeprefix(prefix): value for name, value in tensors if name.startswith(prefix)}


def inclined(program: Program, margin: float) -> Program:
    """Routers that say yes to more or fewer tokens."""
    for node in program.called_modules(TokenRouter):
        router = program.module(node)
        with torch.no_grad():
            router.out_conv[-2].weight.mul_(20)
            router.out_conv[-2].bias.copy_(torch.tensor([margin, 0.0]))
    return program
