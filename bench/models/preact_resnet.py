"""The pre-activation ResNet-18 of CS-KD, Self-KD-Lib and zipfls, the student of most teacher-free tables on CIFAR.

He et al. Identity Mappings in Deep Residual Networks. ECCV 2016. arXiv:1603.05027. Unlike theirs, its shortcuts carry the
unit's input after batch norm and ReLU, also where there is no convolution, and nothing follows the last sum but the mean.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from bench.models.base import MODELS, DropPath, Network, Stage, conv_norm, kaiming_convolutions

WIDTHS = (64, 64, 128, 256, 512)  # of stem and stages


class PreActivated(nn.Module):
    """With y = ReLU(BN(x)): two 3x3 convolutions of y, batch norm and ReLU between, beside y or a 1x1 convolution of it."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(
            *conv_norm(in_channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        return self.drop_path(self.branch(entered)) + self.shortcut(entered)


@MODELS.register_module()
def preact_resnet18(classes: int, channels: int = 3) -> Network:
    """Pre-activation ResNet-18 for CIFAR. Its stages end with bare sums."""
    stem = nn.Sequential(*conv_norm(channels, WIDTHS[0], 3), nn.ReLU(inplace=True))
    blocks = []
    for i, (in_width, width) in enumerate(itertools.pairwise(WIDTHS)):
        first = PreActivated(in_width, width, 1 if i == 0 else 2)
        blocks.append(Stage(nn.Sequential(first, PreActivated(width, width, 1)), nn.Identity()))
    network = Network(stem, blocks, nn.Linear(WIDTHS[-1], classes), [None] * len(blocks))
    kaiming_convolutions(network)
    return network
