"""Networks of other people's kinds, with random weights: they have no module that the passes know by name."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.program import Program, StatePair
from mattecompress.signature import Signature


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions and a shortcut, projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3)
        self.shortcut = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, residual blocks, and a classifier on a vector: the batch of one is written into its reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8, 3, 2)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 12, 2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        return self.head(self.blocks(x).mean((2, 3)).reshape(1, 12))


class Inverted(nn.Module):
    """Expand, filter by channel, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.layers = nn.Sequential(
            _conv(inputs, wide, 1),
            nn.ReLU6(inplace=True),
            _conv(wide, wide, 3, stride, wide),
            nn.ReLU6(inplace=True),
            _conv(wide, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """A stem, inverted residuals, and a dense map of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 6, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(6, 6, 1), Inverted(6, 10, 2), Inverted(10, 10, 1))
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class TwoInputs(nn.Module):
    """A picture and a guide of half its size give a matte and a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.guide = _conv(3, 6, 3, 2), _conv(1, 6, 3)
        self.mix, self.matte = _conv(6, 6, 3), nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, src: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.mix(F.relu(self.picture(src)) + F.relu(self.guide(guide))))
        return self.matte(features).sigmoid(), features


class FedBack(nn.Module):
    """The last layer's output is read by the first on the next frame; one layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 1, 1)

    def forward(self, src: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(torch.cat([src, memory], 1)))
        alpha = self.last(F.relu(self.twice(F.relu(self.twice(x))))).sigmoid()
        return alpha, alpha


class SideBySide(nn.Module):
    """A module that holds the weights of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.ParameterDict({"one": torch.zeros(6, 3, 3, 3), "two": torch.zeros(1, 6, 3, 3)})

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.conv2d(x, self.part["one"], padding=1)), self.part["two"], padding=1)


class Trimapped(nn.Module):
    """A picture and its trimap give a matte."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return self.last(F.relu(self.first(torch.cat([image, trimap], 1)))).sigmoid()


SHAPE = (1, 3, 16, 24)
SIGNATURES: dict[type[nn.Module], Signature] = {
    ResNet: Signature((("x", SHAPE),), ("classes",)),
    MobileNetV2: Signature((("x", SHAPE),), ("classes",)),
    SideBySide: Signature((("x", SHAPE),), ("pha",)),
    TwoInputs: Signature((("src", SHAPE), ("guide", (1, 1, 8, 12))), ("pha", "features")),
    Trimapped: Signature((("image", SHAPE), ("trimap", (1, 1, 16, 24))), ("alpha",)),
    FedBack: Signature((("src", SHAPE), ("r1i", (1, 1, 16, 24))), ("pha", "r1o"), (StatePair("r1i", "r1o"),)),
}


def captured(kind: type[nn.Module]) -> Program:
    """A network with random weights and batch norms that have seen something."""
    generator = torch.Generator().manual_seed(3)
    net = kind()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        elif name.endswith(("bias", "running_mean")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return capture(net.eval(), SIGNATURES[kind], kind.__name__.lower())


def clips_for(kind: type[nn.Module], clips: int = 2, frames: int = 4) -> list[Tensor | dict[str, Tensor]]:
    """Smooth random frames for every input that is no state."""
    generator = torch.Generator().manual_seed(7)
    signature = SIGNATURES[kind]
    states = {pair.input for pair in signature.states}
    shapes = {name: shape for name, shape in signature.inputs if name not in states}

    def draw(shape: tuple[int | str, ...]) -> Tensor:
        height, width = int(shape[2]), int(shape[3])
        small = torch.rand(frames, int(shape[1]), height // 4, width // 4, generator=generator)
        return F.interpolate(small, (height, width), mode="bilinear")

    drawn = [{name: draw(shape) for name, shape in shapes.items()} for _ in range(clips)]
    return [clip if len(clip) > 1 else next(iter(clip.values())) for clip in drawn]
