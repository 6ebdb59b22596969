"""Wide residual networks: Zagoruyko and Komodakis, BMVC 2016. arXiv:1605.07146. Layers as in the CRD paper's RepDistiller.

In a pre-activation network the first unit of each stage normalises and rectifies the sum that the stage before it ends with.
Here that batch norm and ReLU belong to the stage before. The function is the same, since a unit that widens uses the rectified
map alone, for its shortcut too. So `preact` is the normalised sum, as in RepDistiller, and `stages` is its ReLU (RepDistiller
taps the bare sums). The stem is a bare convolution.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.base import MODELS, Network, Stage, kaiming_convolutions


def convolution(in_channels: int, channels: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=False)


class Unit(nn.Module):
    """x + two convolutions, each behind batch norm and ReLU; the shape stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), convolution(channels, channels)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Widening(nn.Module):
    """First unit of a wider stage, behind batch norm and ReLU: two 3x3 convolutions beside a 1x1 one."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(in_channels, channels, stride=stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            convolution(channels, channels),
        )
        self.shortcut = convolution(in_channels, channels, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


def wide_resnet(depth: int, factor: int, classes: int, channels: int) -> Network:
    """Three stages of (depth - 4) / 6 units and 16, 32 and 64 times `factor` channels."""
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    units = (depth - 4) // 6
    blocks, norms = [], []
    for i in range(3):
        in_width, width = widths[i : i + 2]
        if in_width == width:  # the first stage at factor 1
            body: list[nn.Module] = [Unit(width)]
        else:
            body = [Widening(in_width, width, stride=1 if i == 0 else 2)]
            if i == 0:
                body = [nn.BatchNorm2d(in_width), nn.ReLU(inplace=True), *body]
        body += [Unit(width) for _ in range(units - 1)]
        norms.append(nn.BatchNorm2d(width))
        blocks.append(Stage(nn.Sequential(*body, norms[-1]), nn.ReLU()))
    network = Network(convolution(channels, widths[0]), blocks, nn.Linear(widths[-1], classes), norms)
    kaiming_convolutions(network)
    nn.init.zeros_(network.classifier.bias)
    return network


@MODELS.register_module()
def wrn_16_1(classes: int, channels: int = 3) -> Network:
    """WRN-16-1, 16 to 64 channels."""
    return wide_resnet(16, 1, classes, channels)


@MODELS.register_module()
def wrn_16_2(classes: int, channels: int = 3) -> Network:
    """WRN-16-2, 32 to 128 channels."""
    return wide_resnet(16, 2, classes, channels)


@MODELS.register_module()
def wrn_40_1(classes: int, channels: int = 3) -> Network:
    """WRN-40-1, 16 to 64 channels."""
    return wide_resnet(40, 1, classes, channels)


@MODELS.register_module()
def wrn_40_2(classes: int, channels: int = 3) -> Network:
    """WRN-40-2, 32 to 128 channels."""
    return wide_resnet(40, 2, classes, channels)
