"""ShuffleNets for small images, with the layers of the CRD paper's RepDistiller: a 1x1 stem without stride or pooling.

V1: Zhang et al., CVPR 2018. arXiv:1707.01083, 3 groups. V2: Ma et al., ECCV 2018. arXiv:1807.11164, width 1.
torch's default initialization.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.base import MODELS, Network, Stage, conv_norm, global_pool, relu_between

GROUPS = 3


class GroupedUnit(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1, before the activation.

    Added to its input; or, where it halves height and width, joined with its pooled input.
    """

    def __init__(self, in_channels: int, channels: int, first: bool) -> None:
        super().__init__()
        own = channels - in_channels if first else channels
        narrow, stride = own // 4, 2 if first else 1
        groups = 1 if in_channels == 24 else GROUPS  # the stem is too narrow to be grouped
        self.branch = nn.Sequential(
            *conv_norm(in_channels, narrow, 1, groups=groups),
            nn.ReLU(inplace=True),
            nn.ChannelShuffle(groups),
            *conv_norm(narrow, narrow, 3, stride, groups=narrow),
            nn.ReLU(inplace=True),
            *conv_norm(narrow, own, 1, groups=GROUPS),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if first else None

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x if self.pool is None else torch.cat([self.branch(x), self.pool(x)], dim=1)


def branch(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """V2: 1x1, 3x3 depthwise, 1x1, before the activation."""
    return nn.Sequential(
        *conv_norm(in_channels, channels, 1),
        nn.ReLU(inplace=True),
        *conv_norm(channels, channels, 3, stride, groups=channels),
        *conv_norm(channels, channels, 1),
    )


class SplitUnit(nn.Module):
    """V2: half the channels pass through a branch, half past it; joined and shuffled, before the activation.

    The activation that follows leaves the half past the branch as it is, since the unit's input is rectified.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = branch(channels // 2, channels // 2, stride=1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        past, through = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([past, self.branch(through)], dim=1))


class DownUnit(nn.Module):
    """V2: two branches that halve height and width; joined and shuffled, before the activation."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            *conv_norm(in_channels, in_channels, 3, stride=2, groups=in_channels),
            *conv_norm(in_channels, channels // 2, 1),
        )
        self.branch = branch(in_channels, channels // 2, stride=2)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


@MODELS.register_module()
def shufflenetv1(classes: int, channels: int = 3) -> Network:
    """ShuffleNetV1 for CIFAR, 3 groups, 240 to 960 channels."""
    width = 24
    stem = nn.Sequential(*conv_norm(channels, width, 1), nn.ReLU(inplace=True))
    blocks, norms = [], []
    for out_channels, count in [(240, 4), (480, 8), (960, 4)]:
        units = [GroupedUnit(width, out_channels, first=True)]
        units += [GroupedUnit(out_channels, out_channels, first=False) for _ in range(count - 1)]
        blocks.append(Stage(relu_between(units), nn.ReLU()))
        norms.append(units[-1].branch[-1])
        width = out_channels
    return Network(stem, blocks, nn.Linear(width, classes), norms)


@MODELS.register_module()
def shufflenetv2(classes: int, channels: int = 3) -> Network:
    """ShuffleNetV2 for CIFAR at width 1, 116 to 464 channels."""
    width = 24
    stem = nn.Sequential(*conv_norm(channels, width, 1), nn.ReLU(inplace=True))
    blocks = []
    for out_channels, count in [(116, 4), (232, 8), (464, 4)]:
        units = [DownUnit(width, out_channels), *(SplitUnit(out_channels) for _ in range(count - 1))]
        blocks.append(Stage(relu_between(units), nn.ReLU()))
        width = out_channels
    head = nn.Sequential(*conv_norm(width, 1024, 1), nn.ReLU(inplace=True), *global_pool())
    return Network(stem, blocks, nn.Linear(1024, classes), norms=[None] * 3, head=head)
