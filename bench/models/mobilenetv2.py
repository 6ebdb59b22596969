"""MobileNetV2 for small images: Sandler et al., CVPR 2018. arXiv:1801.04381. Layers as in the CRD paper's RepDistiller.

Half the paper's widths (but 1280 channels before the classifier), ReLU in place of ReLU6, stride 1 in the second group. The
stages are those between which RepDistiller taps. They end without an activation, so `preact` and `stages` are the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.base import MODELS, DropPath, Network, Stage, conv_norm, global_pool, kaiming_convolutions

# Expansion, channels, units and stride of each group of bottlenecks.
STAGES = [
    [(1, 8, 1, 1), (6, 12, 2, 1)],
    [(6, 16, 3, 2)],
    [(6, 32, 4, 2), (6, 48, 3, 1)],
    [(6, 80, 3, 2), (6, 160, 1, 1)],
]


class InvertedBottleneck(nn.Module):
    """A 1x1 convolution that widens, a 3x3 depthwise one, a 1x1 one that narrows; beside a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.branch = nn.Sequential(
            *conv_norm(in_channels, wide, 1),
            nn.ReLU(inplace=True),
            *conv_norm(wide, wide, 3, stride, groups=wide),
            nn.ReLU(inplace=True),
            *conv_norm(wide, channels, 1),
        )
        self.drop_path = DropPath() if stride == 1 and in_channels == channels else None

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) if self.drop_path is None else x + self.drop_path(self.branch(x))


@MODELS.register_module()
def mobilenetv2(classes: int, channels: int = 3) -> Network:
    """MobileNetV2 for CIFAR at half its widths."""
    width = 16
    stem = nn.Sequential(*conv_norm(channels, width, 3, stride=2), nn.ReLU(inplace=True))
    blocks, norms = [], []
    for groups in STAGES:
        units = []
        for expansion, out_channels, count, stride in groups:
            for i in range(count):
                units.append(InvertedBottleneck(width, out_channels, stride if i == 0 else 1, expansion))
                width = out_channels
        blocks.append(Stage(nn.Sequential(*units), nn.Identity()))
        norms.append(units[-1].branch[-1])
    head = nn.Sequential(*conv_norm(width, 1280, 1), nn.ReLU(inplace=True), *global_pool())
    network = Network(stem, blocks, nn.Linear(1280, classes), norms, head)
    kaiming_convolutions(network)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    return network
