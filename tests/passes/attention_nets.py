"""A network of one or two attentions over a 3x4 grid, or one of any size, written as papers write it."""

from functools import cache

import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.token_router import TokenRouter
from mattecompress.program import Program
from mattecompress.signature import Signature

Grid = tuple[int | str, int | str]
OPEN: Grid = ("h", "w")


class Mixer(nn.Module):
    """One attention, with or without relative positions, or with a further offset that no pass knows.

    On a grid of any size relative positions are the same at all places.
    """

    def __init__(self, positioned: bool, masked: bool = False, grid: Grid = (3, 4)) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        rows, columns = (size if isinstance(size, int) else 1 for size in grid)
        self.vertical = nn.Parameter(torch.randn(rows, rows, 4)) if positioned else None
        self.horizontal = nn.Parameter(torch.randn(columns, columns, 4))
        self.mask = nn.Parameter(torch.eye(12)) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        tokens = height * width
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, 4).unbind(0)
        logits = (q * 0.5) @ k.transpose(-2, -1)
        if self.vertical is not None:
            grid = q.reshape(-1, height, width, 4)
            up = torch.einsum("bhwc,hkc->bhwk", grid, self.vertical)
            side = torch.einsum("bhwc,wkc->bhwk", grid, self.horizontal)
            logits = logits.view(-1, height, width, height, width) + up[..., None] + side[..., None, :]
            logits = logits.view(-1, tokens, tokens)
        if self.mask is not None:
            logits = logits + self.mask
        y = (logits.softmax(-1) @ v).reshape(batch, 2, height, width, 4)
        y = y.permute(0, 2, 3, 1, 4).reshape(batch, height, width, 8)
        return x + self.proj(y)


@cache
def mixer(
    positioned: bool = False,
    masked: bool = False,
    batch: int | str = 2,
    blocks: int = 1,
    grid: Grid = (3, 4),
) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(*(Mixer(positioned, masked, grid) for _ in range(blocks))).eval()
    return capture(net, Signature((("x", (batch, *grid, 8)),), ("y",)), "mixer")


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
