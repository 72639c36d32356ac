"""The encoder of BiMatting and BiVM: five groups of three sub-blocks, and two more that widen the deepest feature.

A sub-block, with x of Cin channels, f and P of `mattecompress.modules.elastic_shortcut`:

    h = RPReLU(BN(conv3x3(sign(x + b))) + a1 * P(x)),  y = RPReLU(BN(conv1x1(sign(h + b'))) + a2 * f(h))

A group of head, middle and tail, from x: y = tail + b * f(P(head)) + c * f(P(x)).

BiMatting has a1 = a2 = 1, b = 1 where the middle has stride 2 and else 0, and c = 0; all are learnable in BiVM, whose
equations (9) to (12) these are. Their symbols are lost in our copy of the paper: reconstructions (R).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
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


class Group(NamedTuple):
    """Channels that the three sub-blocks of a group give, and the stride of the middle one."""

    head: int
    middle: int
    tail: int
    stride: int = 1

    def stages(self, inputs: int) -> tuple[Stage, Stage, Stage]:
        """Its sub-blocks."""
        return (
            Stage(inputs, self.head, 1),
            Stage(self.head, self.middle, self.stride),
            Stage(self.middle, self.tail, 1),
        )


@dataclass(frozen=True)
class EncoderPlan:
    """Channels of an encoder; a feature is what the last block at each scale gives. The defaults are BiVM's, Table V.

    stem: at half the size.
    widening: of the single sub-blocks behind the groups.
    """

    stem: int = 16
    groups: tuple[Group, ...] = (
        Group(32, 64, 32, 2),
        Group(64, 128, 64, 2),
        Group(64, 128, 64),
        Group(128, 256, 128, 2),
        Group(128, 256, 128),
    )
    widening: tuple[int, ...] = (256, 1024)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every sub-block in order."""
        found: list[Stage] = []
        *before, last = self._given
        for group, inputs in zip(self.groups, before, strict=True):
            found += group.stages(inputs)
        wide = (last, *self.widening)
        return (*found, *(Stage(inputs, outputs, 1) for inputs, outputs in pairwise(wide)))

    @property
    def tapped(self) -> tuple[bool, ...]:
        """Whether the stem, and each group but the last, is the last at its scale."""
        return tuple(group.stride == 2 for group in self.groups)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the features, shallow first."""
        *before, last = self._given
        shallow = (given for given, tapped in zip(before, self.tapped, strict=True) if tapped)
        return (*shallow, (last, *self.widening)[-1])

    @property
    def _given(self) -> tuple[int, ...]:
        """What the stem and each group give."""
        return (self.stem, *(group.tail for group in self.groups))


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
        pieces = outputs // inputs if outputs % inputs == 0 else 1
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
    """RGB in 0..1 to the features of a plan; BiVM's have 16, 32, 64 and 1024 channels at 1/2, 1/4, 1/8 and 1/16."""

    mean: Tensor
    std: Tensor

    def __init__(self, form: Form, plan: EncoderPlan | None = None) -> None:
        super().__init__()
        self.plan = plan or EncoderPlan()
        stages = self.plan.stages
        groups = [(stages[i], stages[i + 1], stages[i + 2]) for i in range(0, 3 * len(self.plan.groups), 3)]
        self.feature = nn.ModuleList([Stem(self.plan.stem), *(SubBlock(stage, form) for stage in stages)])
        self.joins = nn.ModuleList(GroupShortcuts(group, form) for group in groups)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the features, shallow first; odd sizes round up at each halving."""
        stem, *blocks = self.feature
        x = stem((x - self.mean) / self.std)
        taps = []
        for index, (join, tapped) in enumerate(zip(self.joins, self.plan.tapped, strict=True)):
            taps += [x] if tapped else []
            head, middle, tail = blocks[3 * index : 3 * index + 3]
            first = head(x)
            x = join(tail(middle(first)), first, x)
        for block in blocks[3 * len(self.joins) :]:
            x = block(x)
        return (*taps, x)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the features, shallow first."""
        return self.plan.channels

    def draw_factors(self, generator: torch.Generator, scale: float = 1.0) -> None:
        """Give the groups' learnable factors `scale` * U(0, 1): what the paper draws is lost in our copy (R)."""
        for join in self.joins:
            for part in join.children():
                if isinstance(part, ElasticShortcut):
                    drawn = torch.rand((), generator=generator).item()
                    nn.init.constant_(part.factor, scale * drawn)

    def group_shortcuts(self) -> Iterator[tuple[int, GroupShortcuts]]:
        """The stride of each group and its shortcuts."""
        for group, join in zip(self.plan.groups, self.joins, strict=True):
            assert isinstance(join, GroupShortcuts)
            yield group.stride, join

    def elastic_shortcuts(self) -> Iterator[tuple[str, ElasticShortcut]]:
        """Every learnable shortcut by its path."""
        return ((name, part) for name, part in self.named_modules() if isinstance(part, ElasticShortcut))
