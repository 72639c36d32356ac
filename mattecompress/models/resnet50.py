"""ResNet-50 as a feature pyramid (He et al. 2016, "Deep Residual Learning", bottleneck form with stride on the 3x3).

The last stage trades its stride for dilation 2, so the deepest feature stays at 1/16 of the input. Parameter names
are torchvision's, without the classifier.
"""

from torch import Tensor, nn

CHANNELS = (64, 256, 512, 2048)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times `width`, plus the input (through a 1x1 where the shape changes)."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N,inputs,H,W) to (N,4*width,ceil(H/stride),ceil(W/stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return y


class ResNet50(nn.Module):
    """RGB in 0..1, not normalised, to features of 64, 256, 512 and 2048 channels at 1/2, 1/4, 1/8 and 1/16."""

    channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _layer(64, 64, blocks=3, stride=1)
        self.layer2 = _layer(256, 128, blocks=4, stride=2)
        self.layer3 = _layer(512, 256, blocks=6, stride=2)
        self.layer4 = _layer(1024, 512, blocks=3, stride=1, dilation=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the four features, shallow first; odd sizes round up at each halving."""
        f1 = self.relu(self.bn1(self.conv1(x)))
        f2 = self.layer1(self.maxpool(f1))
        f3 = self.layer2(f2)
        return f1, f2, f3, self.layer4(self.layer3(f3))


def _layer(inputs: int, width: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """A stage; its first block changes the shape and keeps dilation 1."""
    first = Bottleneck(inputs, width, stride, dilation=1, project=True)
    rest = [Bottleneck(width * EXPANSION, width, 1, dilation, project=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
