"""Residual networks for small images: He et al., Deep Residual Learning for Image Recognition, CVPR 2016. arXiv:1512.03385

The CIFAR networks have the layers of the CRD paper's RepDistiller, so that numbers compare: the shortcut is a 1x1 convolution
with batch norm wherever the shape changes (He et al. pad with zeros there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bench.models.base import MODELS, DropPath, Network, Stage, conv_norm, kaiming_convolutions, relu_between

NARROW = (16, 16, 32, 64)  # channels of stem and stages
WIDE = (32, 64, 128, 256)


class Residual(nn.Module):
    """branch(x) + shortcut(x), before the activation."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.drop_path = branch, shortcut, DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.branch(x)) + self.shortcut(x)


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(*conv_norm(in_channels, channels, 1, stride))


def basic(in_channels: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    first, second = conv_norm(in_channels, channels, 3, stride), conv_norm(channels, channels, 3)
    return Residual(nn.Sequential(*first, nn.ReLU(inplace=True), *second), shortcut(in_channels, channels, stride))


def bottleneck(in_channels: int, channels: int, stride: int) -> Residual:
    """1x1, 3x3 and 1x1 convolutions, the inner ones a quarter as wide."""
    narrow = channels // 4
    branch = nn.Sequential(
        *conv_norm(in_channels, narrow, 1),
        nn.ReLU(inplace=True),
        *conv_norm(narrow, narrow, 3, stride),
        nn.ReLU(inplace=True),
        *conv_norm(narrow, channels, 1),
    )
    return Residual(branch, shortcut(in_channels, channels, stride))


def residual_network(
    unit: Callable[[int, int, int], Residual], units: Sequence[int], widths: Sequence[int], classes: int, channels: int
) -> Network:
    """3x3 stem, then stages of `units[i]` units and `widths[i + 1]` channels; each but the first halves height and width."""
    stem = nn.Sequential(*conv_norm(channels, widths[0], 3), nn.ReLU(inplace=True))
    blocks, norms = [], []
    for i, (count, in_width, width) in enumerate(zip(units, widths[:-1], widths[1:], strict=True)):
        first = unit(in_width, width, 1 if i == 0 else 2)
        stage = [first, *(unit(width, width, 1) for _ in range(count - 1))]
        blocks.append(Stage(relu_between(stage), nn.ReLU()))
        norms.append(stage[-1].branch[-1])
    network = Network(stem, blocks, nn.Linear(widths[-1], classes), norms)
    kaiming_convolutions(network)
    return network


def cifar_resnet(depth: int, widths: Sequence[int], classes: int, channels: int) -> Network:
    """Three stages of (depth - 2) / 6 basic units."""
    return residual_network(basic, [(depth - 2) // 6] * 3, widths, classes, channels)


@MODELS.register_module()
def resnet8(classes: int, channels: int = 3) -> Network:
    """ResNet-8 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(8, NARROW, classes, channels)


@MODELS.register_module()
def resnet14(classes: int, channels: int = 3) -> Network:
    """ResNet-14 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(14, NARROW, classes, channels)


@MODELS.register_module()
def resnet20(classes: int, channels: int = 3) -> Network:
    """ResNet-20 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(20, NARROW, classes, channels)


@MODELS.register_module()
def resnet32(classes: int, channels: int = 3) -> Network:
    """ResNet-32 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(32, NARROW, classes, channels)


@MODELS.register_module()
def resnet44(classes: int, channels: int = 3) -> Network:
    """ResNet-44 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(44, NARROW, classes, channels)


@MODELS.register_module()
def resnet56(classes: int, channels: int = 3) -> Network:
    """ResNet-56 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(56, NARROW, classes, channels)


@MODELS.register_module()
def resnet110(classes: int, channels: int = 3) -> Network:
    """ResNet-110 for CIFAR, 16 to 64 channels."""
    return cifar_resnet(110, NARROW, classes, channels)


@MODELS.register_module()
def resnet8x4(classes: int, channels: int = 3) -> Network:
    """ResNet-8 for CIFAR, four times as wide: 64 to 256 channels."""
    return cifar_resnet(8, WIDE, classes, channels)


@MODELS.register_module()
def resnet32x4(classes: int, channels: int = 3) -> Network:
    """ResNet-32 for CIFAR, four times as wide: 64 to 256 channels."""
    return cifar_resnet(32, WIDE, classes, channels)


@MODELS.register_module()
def resnet18(classes: int, channels: int = 3) -> Network:
    """ResNet-18 for CIFAR: ImageNet's four stages of basic units behind a 3x3 stem without pooling."""
    return residual_network(basic, [2, 2, 2, 2], (64, 64, 128, 256, 512), classes, channels)


@MODELS.register_module()
def resnet34(classes: int, channels: int = 3) -> Network:
    """ResNet-34 for CIFAR: ImageNet's four stages of basic units behind a 3x3 stem without pooling."""
    return residual_network(basic, [3, 4, 6, 3], (64, 64, 128, 256, 512), classes, channels)


@MODELS.register_module()
def resnet50(classes: int, channels: int = 3) -> Network:
    """ResNet-50 for CIFAR: ImageNet's four stages of bottlenecks behind a 3x3 stem without pooling."""
    return residual_network(bottleneck, [3, 4, 6, 3], (64, 256, 512, 1024, 2048), classes, channels)
