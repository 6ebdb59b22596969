"""Networks for CIFAR with the modules' names of RepDistiller's `models`, written for the tests of checkpoints.

Independent of `bench.models`: only layers, their names and the order of the computation are the same as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


# resnet.py


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + residual)


class ResNet(nn.Module):
    def __init__(self, depth: int, filters: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1, self.bn1 = conv(3, filters[0], 3), nn.BatchNorm2d(filters[0])
        self.layer1 = self.layer(filters[0], filters[1], n, 1)
        self.layer2 = self.layer(filters[1], filters[2], n, 2)
        self.layer3 = self.layer(filters[2], filters[3], n, 2)
        self.fc = nn.Linear(filters[3], classes)

    def layer(self, inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


# resnetv2.py


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * planes:
            self.shortcut = nn.Sequential(conv(inputs, 4 * planes, 1, stride), nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        inputs = 64
        for i, (planes, blocks, stride) in enumerate([(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]):
            layers = []
            for j in range(blocks):
                layers.append(Bottleneck(inputs, planes, stride if j == 0 else 1))
                inputs = 4 * planes
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


# wrn.py


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(rectified))))
        return out + (x if self.convShortcut is None else self.convShortcut(rectified))


class WideGroup(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, factor: int, classes: int) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, [16, 16 * factor, 32 * factor, 64 * factor]
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideGroup(n, widths[0], widths[1], 1)
        self.block2 = WideGroup(n, widths[1], widths[2], 2)
        self.block3 = WideGroup(n, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


# vgg.py


class VGG(nn.Module):
    def __init__(self, groups: list[list[int]], classes: int) -> None:
        super().__init__()
        inputs = 3
        for i, widths in enumerate(groups):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [conv(inputs, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            setattr(self, f"block{i}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = F.relu(getattr(self, f"block{i}")(x))
            x = F.max_pool2d(x, 2) if i < 3 else x
        return self.classifier(x.mean((2, 3)))


# mobilenetv1.py of mdistiller


class MobileNetV1(nn.Module):
    settings = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]

    def __init__(self, classes: int) -> None:
        super().__init__()
        inputs, layers = 32, [nn.Sequential(conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU())]
        for width, stride in self.settings:
            deep = [conv(inputs, inputs, 3, stride, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()]
            layers.append(nn.Sequential(*deep, conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()))
            inputs = width
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x).mean((2, 3)))


# mobilenetv2.py


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv(inputs, wide, 1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            conv(wide, wide, 3, stride, groups=wide),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            conv(wide, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    settings = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]

    def __init__(self, classes: int) -> None:
        super().__init__()
        inputs, groups = 16, []
        self.conv1 = nn.Sequential(conv(3, inputs, 3, 2), nn.BatchNorm2d(inputs), nn.ReLU())
        for expansion, width, count, stride in self.settings:
            layers = []
            for i in range(count):
                layers.append(InvertedResidual(inputs, width // 2, stride if i == 0 else 1, expansion))
                inputs = width // 2
            groups.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(conv(inputs, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.conv2(x).mean((2, 3)))


# ShuffleNetv1.py, ShuffleNetv2.py


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


class ShuffleBottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, middle, self.groups = stride, outputs // 4, 1 if inputs == 24 else 3
        self.conv1, self.bn1 = conv(inputs, middle, 1, groups=self.groups), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = conv(middle, middle, 3, stride, groups=middle), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = conv(middle, outputs, 1, groups=3), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for i, (width, count) in enumerate([(240, 4), (480, 8), (960, 4)]):
            layers = [ShuffleBottleneck(inputs, width - inputs, 2)]
            layers += [ShuffleBottleneck(width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
            inputs = width
        self.linear = nn.Linear(960, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class SplitBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv(half, half, 1), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(right)))))
        return shuffle(torch.cat([left, F.relu(self.bn3(self.conv3(out)))], 1), 2)


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = conv(inputs, inputs, 3, 2, groups=inputs), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = conv(inputs, half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(inputs, half, 1), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv(half, half, 3, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffle(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for i, (width, count) in enumerate([(116, 3), (232, 7), (464, 3)]):
            layers = [DownBlock(inputs, width), *(SplitBlock(width) for _ in range(count))]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
            inputs = width
        self.conv2, self.bn2 = conv(464, 1024, 1), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


FIELD = {
    "resnet8": lambda classes: ResNet(8, (16, 16, 32, 64), classes),
    "resnet20": lambda classes: ResNet(20, (16, 16, 32, 64), classes),
    "resnet8x4": lambda classes: ResNet(8, (32, 64, 128, 256), classes),
    "resnet32x4": lambda classes: ResNet(32, (32, 64, 128, 256), classes),
    "resnet50": ResNet50,
    "wrn_16_2": lambda classes: WideResNet(16, 2, classes),
    "wrn_40_1": lambda classes: WideResNet(40, 1, classes),
    "vgg8": lambda classes: VGG([[64], [128], [256], [512], [512]], classes),
    "vgg13": lambda classes: VGG([[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]], classes),
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "shufflenetv1": ShuffleNet,
    "shufflenetv2": ShuffleNetV2,
}


def field_network(key: str, classes: int = 10, seed: int = 0) -> nn.Module:
    """In eval mode, with batch norms that are not the identity, as after a training."""
    torch.manual_seed(seed)
    return disturbed(FIELD[key](classes))


def disturbed(network: nn.Module) -> nn.Module:
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return network
