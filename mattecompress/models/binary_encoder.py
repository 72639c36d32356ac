"""The encoder of BiMatting and BiVM: five groups of three sub-blocks, and two more that widen the deepest feature.

A sub-block, with x of Cin channels, f and P of `mattecompress.modules.elastic_shortcut`:

    h = RPReLU(BN(conv3x3(sign(x + b))) + a1 * P(x)),  y = RPReLU(BN(conv1x1(sign(h + b'))) + a2 * f(h))

A group of head, middle and tail, from x: y = tail + b * f(P(head)) + c * f(P(x)).

BiMatting has a1 = a2 = 1, b = 1 where the middle has stride 2 and else 0, and c = 0; all are learnable in BiVM, whose
equations (9) to (12) these are. Their symbols are lost in our copy of the paper: reconstructions (R).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mattecompress.models.binary_layers import Form, LearnableBias, convolution, shortcut
from mattecompress.models.mobilenetv3 import IMAGENET_MEAN, IMAGENET_STD
from mattecompress.modules.elastic_shortcut import ElasticShortcut


class Stage(NamedTuple):
    """One sub-block."""

    inputs: int
    outputs: int
    stride: int


GROUPS = (
    (Stage(16, 32, 1), Stage(32, 64, 2), Stage(64, 32, 1)),
    (Stage(32, 64, 1), Stage(64, 128, 2), Stage(128, 64, 1)),
    (Stage(64, 64, 1), Stage(64, 128, 1), Stage(128, 64, 1)),
    (Stage(64, 128, 1), Stage(128, 256, 2), Stage(256, 128, 1)),
    (Stage(128, 128, 1), Stage(128, 256, 1), Stage(256, 128, 1)),
)
WIDENING = (Stage(128, 256, 1), Stage(256, 1024, 1))
TAPPED_GROUPS = (0, 2)
CHANNELS = (16, 32, 64, 1024)


class Stem(nn.Module):
    """A float convolution to half the size, batch norm, no activation."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,H,W) to (N,outputs,ceil(H/2),ceil(W/2))."""
        y: Tensor = self.bn1(self.conv1(x))
        return y


class SubBlock(nn.Module):
    """A 3x3 and a 1x1 convolution, each with a shortcut; the 1x1 is stored in pieces of at most Cin channels."""

    def __init__(self, stage: Stage, form: Form) -> None:
        super().__init__()
        inputs, outputs, stride = stage
        self.move11 = LearnableBias(inputs)
        self.binary_3x3 = convolution(form, inputs, inputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.move12 = LearnableBias(inputs)
        self.prelu1 = nn.PReLU(inputs)
        self.move13 = LearnableBias(inputs)
        self.move21 = LearnableBias(inputs)
        pieces = max(outputs // inputs, 1)
        numbers = [""] if inputs == outputs else [str(number + 1) for number in range(pieces)]
        self.convolutions = [f"binary_pw_down{number}" if number else "binary_pw" for number in numbers]
        self.norms = [f"bn2_{number}" if number else "bn2" for number in numbers]
        for name in self.convolutions:
            self.add_module(name, convolution(form, inputs, outputs // pieces, 1))
        for name in self.norms:
            self.add_module(name, nn.BatchNorm2d(outputs // pieces))
        self.move22 = LearnableBias(outputs)
        self.prelu2 = nn.PReLU(outputs)
        self.move23 = LearnableBias(outputs)
        self.shortcut1 = shortcut(form, inputs, inputs, stride)
        self.shortcut2 = shortcut(form, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,outputs,ceil(H/stride),ceil(W/stride))."""
        h = self.shortcut1(self.bn1(self.binary_3x3(self.move11(x))), x)
        h = self.move13(self.prelu1(self.move12(h)))
        y = self.shortcut2(self._pointwise(self.move21(h)), h)
        result: Tensor = self.move23(self.prelu2(self.move22(y)))
        return result

    def _pointwise(self, q: Tensor) -> Tensor:
        names = zip(self.convolutions, self.norms, strict=True)
        pieces = [self.get_submodule(norm)(self.get_submodule(layer)(q)) for layer, norm in names]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


class GroupShortcuts(nn.Module):
    """What joins a group's tail: `cross` from its head, and in BiVM also `whole` from its input."""

    cross: nn.Module | None
    whole: nn.Module | None

    def __init__(self, group: tuple[Stage, Stage, Stage], form: Form) -> None:
        super().__init__()
        head, middle, tail = group
        joined = form.elastic or middle.stride == 2
        self.cross = shortcut(form, head.outputs, tail.outputs, middle.stride) if joined else None
        self.whole = shortcut(form, head.inputs, tail.outputs, middle.stride) if form.elastic else None

    def forward(self, y: Tensor, head: Tensor, x: Tensor) -> Tensor:
        """The tail's output, the head's, and the group's input, to the shape of the first."""
        if self.cross is not None:
            y = self.cross(y, head)
        return y if self.whole is None else self.whole(y, x)


class BinaryEncoder(nn.Module):
    """RGB in 0..1 to features of 16, 32, 64 and 1024 channels at 1/2, 1/4, 1/8 and 1/16 of its size."""

    channels = CHANNELS
    mean: Tensor
    std: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        stages = [stage for group in (*GROUPS, WIDENING) for stage in group]
        self.feature = nn.ModuleList([Stem(CHANNELS[0]), *(SubBlock(stage, form) for stage in stages)])
        self.joins = nn.ModuleList(GroupShortcuts(group, form) for group in GROUPS)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the four features, shallow first; odd sizes round up at each halving."""
        stem, *blocks = self.feature
        x = stem((x - self.mean) / self.std)
        taps = [x]
        for index, join in enumerate(self.joins):
            head, middle, tail = blocks[3 * index : 3 * index + 3]
            first = head(x)
            x = join(tail(middle(first)), first, x)
            if index in TAPPED_GROUPS:
                taps.append(x)
        for block in blocks[3 * len(self.joins) :]:
            x = block(x)
        return (*taps, x)

    def group_shortcuts(self) -> Iterator[tuple[int, GroupShortcuts]]:
        """The stride of each group and its shortcuts."""
        for group, join in zip(GROUPS, self.joins, strict=True):
            assert isinstance(join, GroupShortcuts)
            yield group[1].stride, join

    def elastic_shortcuts(self) -> Iterator[tuple[str, ElasticShortcut]]:
        """Every learnable shortcut by its path."""
        return ((name, part) for name, part in self.named_modules() if isinstance(part, ElasticShortcut))
