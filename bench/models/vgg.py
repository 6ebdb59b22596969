"""VGG for small images: Simonyan and Zisserman, ICLR 2015. arXiv:1409.1556. Layers as in the CRD paper's RepDistiller.

3x3 convolutions with bias and batch norm, one linear layer. The convolutions before the first pooling are the stem. There is no
pooling before the last stage at 32x32; larger images are pooled there, too.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.base import MODELS, Network, Stage, kaiming_convolutions, relu_between

WIDTHS = (64, 128, 256, 512, 512)


class PoolLarge(nn.Module):
    """2x2 maximum of maps that are at least 8x8."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2) if min(x.shape[-2:]) >= 8 else x


def vgg(convolutions: tuple[int, ...], classes: int, channels: int) -> Network:
    """Five groups of `convolutions[i]` convolutions: the stem and four stages."""
    groups = []
    for count, width in zip(convolutions, WIDTHS, strict=True):
        units = []
        for _ in range(count):
            units.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)))
            channels = width
        groups.append(units)
    stem = nn.Sequential(relu_between(groups[0]), nn.ReLU(inplace=True))
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2), PoolLarge()]
    blocks = [
        Stage(nn.Sequential(pool, *relu_between(units)), nn.ReLU()) for pool, units in zip(pools, groups[1:], strict=True)
    ]
    network = Network(stem, blocks, nn.Linear(channels, classes), norms=[units[-1][1] for units in groups[1:]])
    kaiming_convolutions(network)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    return network


@MODELS.register_module()
def vgg8(classes: int, channels: int = 3) -> Network:
    """VGG-8 with batch norm for CIFAR, five convolutions."""
    return vgg((1, 1, 1, 1, 1), classes, channels)


@MODELS.register_module()
def vgg11(classes: int, channels: int = 3) -> Network:
    """VGG-11 with batch norm for CIFAR, eight convolutions."""
    return vgg((1, 1, 2, 2, 2), classes, channels)


@MODELS.register_module()
def vgg13(classes: int, channels: int = 3) -> Network:
    """VGG-13 with batch norm for CIFAR, ten convolutions."""
    return vgg((2, 2, 2, 2, 2), classes, channels)


@MODELS.register_module()
def vgg16(classes: int, channels: int = 3) -> Network:
    """VGG-16 with batch norm for CIFAR, 13 convolutions."""
    return vgg((2, 2, 3, 3, 3), classes, channels)


@MODELS.register_module()
def vgg19(classes: int, channels: int = 3) -> Network:
    """VGG-19 with batch norm for CIFAR, 16 convolutions."""
    return vgg((2, 2, 4, 4, 4), classes, channels)
