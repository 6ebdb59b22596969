"""MobileNetV1: Howard et al., MobileNets, 2017. arXiv:1704.04861. Layers as in mdistiller; the student of ImageNet's tables.

The stages are those of mdistiller: at a stride of 4, 8, 16 and 32; the layers before are the stem.
"""

from __future__ import annotations

from torch import nn

from bench.models.base import MODELS, Network, Stage, conv_norm

STAGES = [  # channels and stride of each unit
    [(128, 2), (128, 1)],
    [(256, 2), (256, 1)],
    [(512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)],
    [(1024, 2), (1024, 1)],
]


def separable(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    """A 3x3 depthwise convolution and a 1x1 one, each with batch norm and a ReLU between them; no activation at the end."""
    depthwise = conv_norm(in_channels, in_channels, 3, stride, groups=in_channels)
    return [*depthwise, nn.ReLU(inplace=True), *conv_norm(in_channels, channels, 1)]


@MODELS.register_module()
def mobilenetv1(classes: int, channels: int = 3) -> Network:
    """MobileNetV1 for images of ImageNet's size, full width."""
    first = [*conv_norm(channels, 32, 3, stride=2), nn.ReLU(inplace=True)]
    stem = nn.Sequential(*first, *separable(32, 64, 1), nn.ReLU(inplace=True))
    blocks, norms, width = [], [], 64
    for units in STAGES:
        layers: list[nn.Module] = []
        for out_channels, stride in units:
            layers += [*separable(width, out_channels, stride), nn.ReLU(inplace=True)]
            width = out_channels
        blocks.append(Stage(nn.Sequential(*layers[:-1]), nn.ReLU()))
        norms.append(layers[-2])
    return Network(stem, blocks, nn.Linear(width, classes), norms)
