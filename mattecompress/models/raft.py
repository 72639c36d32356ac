"""Optical flow by recurrent refinement (Teed and Deng 2020, "RAFT: Recurrent All-Pairs Field Transforms"), to run only.

Every feature of the first picture is compared with all of the second; from a flow of zero, a GRU looks up the
comparisons around where each pixel is thought to have gone, and corrects. Names and shapes of the parameters are those
of the authors' checkpoints.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.models.checkpoints import CheckpointError, load_checkpoint, read_checkpoint

STRIDE = 8
LEVELS = 4
SMALLEST = STRIDE << (LEVELS - 1)
"""Pixels of a side that leave one feature on the coarsest level."""
ITERATIONS = 12
MARKS = {"raft-small": "update_block.gru.convz.weight", "raft-large": "update_block.gru.convz1.weight"}

Norm = Callable[[int], nn.Module]
Block = Callable[[int, int, int, Norm], nn.Module]


class Residual(nn.Module):
    """Two 3x3 convolutions, plus the input (through a 1x1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = norm(outputs)
        self.downsample: nn.Sequential | None = None
        if stride > 1:
            self.norm3 = norm(outputs)
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,ceil(H/stride),ceil(W/stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1 down to a quarter, 3x3, 1x1 up, plus the input (through a 1x1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1)
        self.norm2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.norm3 = norm(outputs)
        self.downsample: nn.Sequential | None = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,ceil(H/stride),ceil(W/stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return F.relu(x + shortcut)


class Encoder(nn.Module):
    """A picture to `outputs` channels at 1/8, through stages of `widths` at 1/2, 1/2, 1/4 and 1/8."""

    def __init__(self, block: Block, widths: tuple[int, int, int, int], outputs: int, norm: Norm) -> None:
        super().__init__()
        stem, half, quarter, eighth = widths
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3)
        self.norm1 = norm(stem)
        self.layer1 = nn.Sequential(block(stem, half, 1, norm), block(half, half, 1, norm))
        self.layer2 = nn.Sequential(block(half, quarter, 2, norm), block(quarter, quarter, 1, norm))
        self.layer3 = nn.Sequential(block(quarter, eighth, 2, norm), block(eighth, eighth, 1, norm))
        self.conv2 = nn.Conv2d(eighth, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,H,W) in -1..1, H and W multiples of 8, to (N,outputs,H/8,W/8)."""
        x = F.relu(self.norm1(self.conv1(x)))
        y: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return y


class Correlation:
    """The dot products, over the root of C, of all pairs of features (N,C,H,W).

    The second ones are averaged over 1, 2, 4 and 8 places.
    """

    def __init__(self, first: Tensor, second: Tensor, radius: int) -> None:
        count, channels, height, width = first.shape
        pairs = first.flatten(2).transpose(1, 2) @ second.flatten(2) / math.sqrt(channels)
        level = pairs.view(count * height * width, 1, height, width)
        self.levels = [level]
        for _ in range(LEVELS - 1):
            level = F.avg_pool2d(level, 2)
            self.levels.append(level)
        reach = torch.arange(-radius, radius + 1, dtype=first.dtype)
        x, y = torch.meshgrid(reach, reach, indexing="ij")
        self.window = torch.stack([x, y], -1)

    def look_up(self, places: Tensor) -> Tensor:
        """Around places (N,2,H,W) of the second picture, x first: (N,LEVELS*(2*radius+1)^2,H,W), 0 outside of it."""
        count, _, height, width = places.shape
        centres = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        found = []
        for number, level in enumerate(self.levels):
            size = torch.tensor([level.shape[-1], level.shape[-2]], dtype=places.dtype)
            grid = (2 * (centres / 2**number + self.window) + 1) / size - 1
            found.append(F.grid_sample(level, grid, align_corners=False).view(count, height, width, -1))
        return torch.cat(found, -1).permute(0, 3, 1, 2)


class MotionEncoder(nn.Module):
    """What was looked up, and the flow so far, to `outputs` channels and the flow.

    planes: channels of what was looked up. correlation, flow: widths of the layers behind each.
    """

    def __init__(
        self, planes: int, correlation: tuple[int, ...], flow: tuple[int, int], outputs: int
    ) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(planes, correlation[0], 1)
        self.convc2 = nn.Conv2d(*correlation, 3, 1, 1) if len(correlation) == 2 else nn.Identity()
        self.convf1 = nn.Conv2d(2, flow[0], 7, 1, 3)
        self.convf2 = nn.Conv2d(*flow, 3, 1, 1)
        self.conv = nn.Conv2d(correlation[-1] + flow[1], outputs, 3, 1, 1)

    def forward(self, flow: Tensor, looked_up: Tensor) -> Tensor:
        """(N,2,H,W) and (N,planes,H,W) to (N,outputs+2,H,W)."""
        compared = F.relu(self.convc2(F.relu(self.convc1(looked_up))))
        moved = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([compared, moved], 1))), flow], 1)


class ConvGRU(nn.Module):
    """A gated recurrent unit of 3x3 convolutions."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convz, self.convr, self.convq = _gates(hidden, inputs, (3, 3))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """(N,hidden,H,W) and (N,inputs,H,W) to the next state."""
        return _gated(state, x, self.convz, self.convr, self.convq)


class SeparableConvGRU(nn.Module):
    """Two gated recurrent units, of 1x5 and then of 5x1 convolutions."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convz1, self.convr1, self.convq1 = _gates(hidden, inputs, (1, 5))
        self.convz2, self.convr2, self.convq2 = _gates(hidden, inputs, (5, 1))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """(N,hidden,H,W) and (N,inputs,H,W) to the next state."""
        state = _gated(state, x, self.convz1, self.convr1, self.convq1)
        return _gated(state, x, self.convz2, self.convr2, self.convq2)


def _gates(hidden: int, inputs: int, kernel: tuple[int, int]) -> Iterator[nn.Conv2d]:
    padding = kernel[0] // 2, kernel[1] // 2
    return (nn.Conv2d(hidden + inputs, hidden, kernel, 1, padding) for _ in range(3))


def _gated(state: Tensor, x: Tensor, update: nn.Module, reset: nn.Module, candidate: nn.Module) -> Tensor:
    both = torch.cat([state, x], 1)
    z = torch.sigmoid(update(both))
    q = torch.tanh(candidate(torch.cat([torch.sigmoid(reset(both)) * state, x], 1)))
    return (1 - z) * state + z * q


class FlowHead(nn.Module):
    """A state to the correction of the flow."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, 2, 3, 1, 1)

    def forward(self, state: Tensor) -> Tensor:
        """(N,hidden,H,W) to (N,2,H,W)."""
        y: Tensor = self.conv2(F.relu(self.conv1(state)))
        return y


class UpdateBlock(nn.Module):
    """One correction; `mask` gives the weights of convex upsampling, where that is used."""

    def __init__(
        self, encoder: MotionEncoder, gru: nn.Module, flow_head: FlowHead, mask: nn.Module | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.gru = gru
        self.flow_head = flow_head
        self.mask = mask

    def forward(
        self, state: Tensor, context: Tensor, looked_up: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next state, and what to add to the flow."""
        state = self.gru(state, torch.cat([context, self.encoder(flow, looked_up)], 1))
        return state, self.flow_head(state)

    def upsample(self, state: Tensor, flow: Tensor) -> Tensor:
        """Flow (N,2,H,W) in steps of 8 pixels to (N,2,8*H,8*W) in pixels."""
        if self.mask is None:
            return F.interpolate(STRIDE * flow, scale_factor=STRIDE, mode="bilinear", align_corners=True)
        return convex_upsample(STRIDE * flow, 0.25 * self.mask(state))


def convex_upsample(flow: Tensor, weights: Tensor) -> Tensor:
    """flow (N,2,H,W) to 8 times its size, each value a mean of its 3x3 neighbours, 0 outside.

    Args:
        flow: as it will be.
        weights: (N,9*8*8,H,W), logits by neighbour, row and column within the 8x8 pixels, rows first.
    """
    count, _, height, width = flow.shape
    shares = weights.view(count, 9, STRIDE, STRIDE, height, width).softmax(1)
    padded = F.pad(flow, (1, 1, 1, 1))
    near = torch.stack([padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)], 2)
    fine = torch.einsum("nkrshw,nckhw->nchrws", shares, near)
    return fine.reshape(count, 2, STRIDE * height, STRIDE * width)


class Raft(nn.Module):
    """The flow between two pictures. hidden: channels of the state; radius: of what is looked up."""

    def __init__(
        self, fnet: Encoder, cnet: Encoder, update_block: UpdateBlock, hidden: int, radius: int
    ) -> None:
        super().__init__()
        self.fnet = fnet
        self.cnet = cnet
        self.update_block = update_block
        self.hidden = hidden
        self.radius = radius

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow (N,2,H,W) in pixels, x first, from `first` to `second`, both (N,3,H,W), RGB in 0..1 and of any size."""
        left, right, top, bottom = margins = _margins(*first.shape[-2:])
        first, second = (F.pad(2 * x - 1, margins, mode="replicate") for x in (first, second))
        correlation = Correlation(self.fnet(first), self.fnet(second), self.radius)
        known = self.cnet(first)
        state, context = torch.tanh(known[:, : self.hidden]), F.relu(known[:, self.hidden :])
        rows, columns = (torch.arange(size, dtype=known.dtype) for size in known.shape[-2:])
        here = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        flow = known.new_zeros(known.shape[0], 2, *known.shape[-2:])
        for _ in range(ITERATIONS):
            state, correction = self.update_block(state, context, correlation.look_up(here + flow), flow)
            flow = flow + correction
        fine: Tensor = self.update_block.upsample(state, flow)
        return fine[..., top : fine.shape[-2] - bottom, left : fine.shape[-1] - right]


def _margins(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, evenly, to multiples of 8."""
    missing = [max(-size % STRIDE, SMALLEST - size) for size in (width, height)]
    (left, right), (top, bottom) = ((extra // 2, extra - extra // 2) for extra in missing)
    return left, right, top, bottom


def small() -> Raft:
    """RAFT-small: 1.0 M parameters, bilinear upsampling."""
    hidden, context, radius = 96, 64, 3
    encoder = functools.partial(Encoder, Bottleneck, (32, 32, 64, 96))
    motion = MotionEncoder(LEVELS * (2 * radius + 1) ** 2, (96,), (64, 32), 80)
    update = UpdateBlock(motion, ConvGRU(hidden, context + 82), FlowHead(hidden, 128), None)
    return Raft(
        encoder(128, nn.InstanceNorm2d), encoder(hidden + context, nn.Identity), update, hidden, radius
    )


def large() -> Raft:
    """RAFT: 5.3 M parameters, convex upsampling."""
    hidden, context, radius = 128, 128, 4
    encoder = functools.partial(Encoder, Residual, (64, 64, 96, 128))
    motion = MotionEncoder(LEVELS * (2 * radius + 1) ** 2, (256, 192), (128, 64), 126)
    mask = nn.Sequential(nn.Conv2d(hidden, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 9 * STRIDE**2, 1))
    update = UpdateBlock(motion, SeparableConvGRU(hidden, context + 128), FlowHead(hidden, 256), mask)
    return Raft(
        encoder(256, nn.InstanceNorm2d), encoder(hidden + context, nn.BatchNorm2d), update, hidden, radius
    )


def load_raft(path: Path) -> Raft:
    """The network, in eval mode, whose weights a .pth, .pt or .safetensors file of the authors' names holds.

    Raises:
        CheckpointError: the file is unreadable, or not of RAFT or RAFT-small.
    """
    names = read_checkpoint(path)
    found = next((variant for variant, mark in MARKS.items() if mark in names), None)
    if found is None:
        raise CheckpointError(
            f"{path}: holds no RAFT weights under the authors' names, first '{next(iter(names))}'; "
            "give raft-small.pth or another checkpoint of their layout"
        )
    model = small() if found == "raft-small" else large()
    load_checkpoint(model, path, found)
    return model.eval()
