"""Wide residual networks: Zagoruyko and Komodakis, BMVC 2016. arXiv:1605.07146. Layers as in the CRD paper's RepDistiller.

In a pre-activation network a stage ends with a bare sum, which the next stage's first unit normalizes and rectifies. The field
(RepDistiller, mdistiller, ReviewKD) takes these sums as a stage's features; so do `taps="sums"`. `Output.preact` is the
normalized sum and `Output.activated` its ReLU. The stem is a bare convolution.

`taps="rectified"` takes ReLU(BN(sum)) as the features. There that batch norm and ReLU belong to the stage before. The function
is the same, since a unit that widens uses the rectified map alone, for its shortcut too.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bench.models.base import MODELS, WHEN_ABSENT, DropPath, Network, Stage, global_pool, kaiming_convolutions
from methods.base import Output

Taps = Literal["sums", "rectified"]


def convolution(in_channels: int, channels: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=False)


class Unit(nn.Module):
    """x + two convolutions, each behind batch norm and ReLU; the shape stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), convolution(channels, channels)]
        self.branch, self.drop_path = nn.Sequential(*layers), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


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
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.drop_path(self.branch(x))


class Head(nn.Module):
    """The last sum (B, C, H, W) to the embedding (B, C): batch norm, ReLU (not in place), mean over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.activation, self.pool = nn.BatchNorm2d(channels), nn.ReLU(), global_pool()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.norm(x)))


class WideResNet(Network):
    """A network that answers with the sums, their batch norms and the ReLU of those, each computed once."""

    head: Head

    @property
    def last_activation(self) -> nn.Module:
        return self.head.activation

    def forward(self, image: Tensor) -> Output:
        stem = self.stem(image)
        stages, preact, activated = [self.blocks[0](stem)], [], []
        for block in list(self.blocks)[1:]:
            assert isinstance(block, Stage)
            relu, *units = block.body
            preact.append(block.norm(stages[-1]))
            x = relu(preact[-1])
            activated.append(x)
            for unit in units:
                x = unit(x)
            stages.append(x)
        preact.append(self.head.norm(stages[-1]))
        activated.append(self.head.activation(preact[-1]))
        embedding = self.head.pool(activated[-1])
        logits = self.classifier(self.dropout(embedding))
        return Output(logits, embedding, tuple(stages), tuple(preact), stem, tuple(activated))


def stage(in_channels: int, channels: int, units: int, first: bool) -> Stage:
    """`units` units that end with a sum; one that widens begins with `norm` and a ReLU, which is not in place."""
    more = [Unit(channels) for _ in range(units - 1)]
    if in_channels == channels:  # the first stage at factor 1
        return Stage(nn.Sequential(Unit(channels), *more), nn.Identity())
    widening = Widening(in_channels, channels, stride=1 if first else 2)
    return Stage(nn.Sequential(nn.ReLU(), widening, *more), nn.Identity(), nn.BatchNorm2d(in_channels))


def rectified_stage(in_channels: int, channels: int, units: int, first: bool) -> Stage:
    """As `stage`, but the batch norm and ReLU behind its sum are part of it, and those before it are not (or, `first`, are)."""
    if in_channels == channels:
        body: list[nn.Module] = [Unit(channels)]
    else:
        body = [Widening(in_channels, channels, stride=1 if first else 2)]
        if first:
            body = [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), *body]
    body += [Unit(channels) for _ in range(units - 1)]
    return Stage(nn.Sequential(*body, nn.BatchNorm2d(channels)), nn.ReLU())


def rectified_names(units: int, widens: bool) -> dict[str, str]:
    """Prefixes of names with rectified taps to those with sums, for stages of `units` units, the first widening or not."""
    names: dict[str, str] = {}
    for i in range(3):
        old = 2 if i == 0 and widens else 0  # where the units begin
        new = 0 if i == 0 and not widens else 1
        names |= {f"blocks.{i}.body.{old + j}.": f"blocks.{i}.body.{new + j}." for j in range(units)}
        names[f"blocks.{i}.body.{old + units}."] = f"blocks.{i + 1}.norm." if i < 2 else "head.norm."
    return names | ({"blocks.0.body.0.": "blocks.0.norm."} if widens else {})


def wide_resnet(depth: int, factor: int, classes: int, channels: int, taps: Taps) -> Network:
    """Three stages of (depth - 4) / 6 units and 16, 32 and 64 times `factor` channels.

    Weights drawn and parameters do not depend on `taps`. Weights saved with either load into both.
    """
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    units = (depth - 4) // 6
    make = stage if taps == "sums" else rectified_stage
    blocks = [make(widths[i], widths[i + 1], units, first=i == 0) for i in range(3)]
    stem, classifier = convolution(channels, widths[0]), nn.Linear(widths[-1], classes)
    names = rectified_names(units, widens=factor > 1)
    if taps == "sums":
        head = Head(widths[-1])
        norms = [*(block.norm for block in blocks[1:]), head.norm]
        network: Network = WideResNet(stem, blocks, classifier, norms, head, names)
    else:
        names = {new: old for old, new in names.items()}
        network = Network(stem, blocks, classifier, [block.body[-1] for block in blocks], other_names=names)
    kaiming_convolutions(network)
    nn.init.zeros_(network.classifier.bias)
    return network


@MODELS.register_module()
def wrn_16_1(classes: int, channels: int = 3, taps: Taps = "sums") -> Network:
    """WRN-16-1, 16 to 64 channels."""
    return wide_resnet(16, 1, classes, channels, taps)


@MODELS.register_module()
def wrn_16_2(classes: int, channels: int = 3, taps: Taps = "sums") -> Network:
    """WRN-16-2, 32 to 128 channels."""
    return wide_resnet(16, 2, classes, channels, taps)


@MODELS.register_module()
def wrn_40_1(classes: int, channels: int = 3, taps: Taps = "sums") -> Network:
    """WRN-40-1, 16 to 64 channels."""
    return wide_resnet(40, 1, classes, channels, taps)


@MODELS.register_module()
def wrn_40_2(classes: int, channels: int = 3, taps: Taps = "sums") -> Network:
    """WRN-40-2, 32 to 128 channels."""
    return wide_resnet(40, 2, classes, channels, taps)


# Records from before `taps` existed were trained with rectified ones, and hold weights under the names of those.
WHEN_ABSENT.update({key: {"taps": "rectified"} for key in ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")})
