"""torchvision's networks for ImageNet-sized images, split into stem, four stages, head and classifier.

The stages are those at a stride of 4, 8, 16 and 32, whatever the family; the layers before are the stem. Dropout and stochastic
depth, which some of torchvision's constructors switch on, are off: they belong to the recipe (see its `dropout`, `drop_path`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from bench.models.base import MODELS, DropPath, Network, Stage, global_pool, names_of, relu_between, renamed
from bench.models.resnet import Residual


def from_resnet(net: Any) -> Network:
    def unit(block: Any) -> Residual:
        layers = [block.conv1, block.bn1, nn.ReLU(inplace=True), block.conv2, block.bn2]
        if hasattr(block, "conv3"):
            layers += [nn.ReLU(inplace=True), block.conv3, block.bn3]
        return Residual(nn.Sequential(*layers), block.downsample or nn.Identity())

    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    stages = [[unit(block) for block in layer] for layer in (net.layer1, net.layer2, net.layer3, net.layer4)]
    blocks = [Stage(relu_between(units), nn.ReLU()) for units in stages]
    return Network(stem, blocks, net.fc, norms=[units[-1].branch[-1] for units in stages])


def from_regnet(net: Any) -> Network:
    blocks, norms = [], []
    for stage in net.trunk_output:
        stage[-1].activation = nn.Identity()
        blocks.append(Stage(nn.Sequential(*stage), nn.ReLU()))
        norms.append(stage[-1].f[-1][1])
    return Network(net.stem, blocks, net.fc, norms)


def from_shufflenetv2(net: Any) -> Network:
    """A unit's other half is rectified already, so the last ReLU may follow the shuffle."""
    blocks = []
    for stage in (net.stage2, net.stage3, net.stage4):
        stage[-1].branch2[-1] = nn.Identity()
        blocks.append(Stage(stage, nn.ReLU()))
    head = nn.Sequential(*net.conv5, *global_pool())
    return Network(nn.Sequential(*net.conv1, net.maxpool), blocks, net.fc, norms=[None] * 3, head=head)


def from_densenet(net: Any) -> Network:
    """A transition's batch norm and ReLU belong to the stage before it, as in `bench.models.wrn` with rectified taps."""
    f = net.features
    stem = nn.Sequential(f.conv0, f.norm0, f.relu0, f.pool0)
    norms = [f.transition1.norm, f.transition2.norm, f.transition3.norm, f.norm5]
    bodies = [
        [f.denseblock1],
        [f.transition1.conv, f.transition1.pool, f.denseblock2],
        [f.transition2.conv, f.transition2.pool, f.denseblock3],
        [f.transition3.conv, f.transition3.pool, f.denseblock4],
    ]
    blocks = [Stage(nn.Sequential(*body, norm), nn.ReLU()) for body, norm in zip(bodies, norms, strict=True)]
    return Network(stem, blocks, net.classifier, norms)


def from_vgg(net: Any) -> Network:
    """Each stage begins with the pooling that ends torchvision's groups; the hidden linear layers are in the head."""
    groups: list[list[nn.Module]] = [[]]
    for layer in net.features:
        if isinstance(layer, nn.MaxPool2d):
            groups.append([])
        groups[-1].append(layer)
    stem, *stages, last_pool = groups
    blocks = [Stage(nn.Sequential(*layers[:-1]), nn.ReLU()) for layers in stages]
    norms = [layers[-2] if isinstance(layers[-2], nn.BatchNorm2d) else None for layers in stages]
    head = nn.Sequential(*last_pool, net.avgpool, nn.Flatten(), *net.classifier[:-1])
    return Network(nn.Sequential(*stem), blocks, net.classifier[-1], norms, head)


def from_features(net: Any) -> Network:
    """MobileNets and EfficientNets: a list of units that end without an activation, then a 1x1 convolution."""
    *units, last_convolution = net.features
    starts = [i for i, unit in enumerate(units) if i > 0 and reduces(unit)]
    cuts = [*starts, len(units)]
    blocks = [Stage(nn.Sequential(*units[i:j]), nn.Identity()) for i, j in pairwise(cuts)]
    norms = [[m for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1] for block in blocks]
    head = nn.Sequential(last_convolution, *global_pool(), *net.classifier[:-1])
    return Network(nn.Sequential(*units[: starts[0]]), blocks, net.classifier[-1], norms, head)


def reduces(unit: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and max(module.stride) > 1 for module in unit.modules())


def from_convnext(net: Any) -> Network:
    stem, *rest = net.features
    stages = [rest[:1], rest[1:3], rest[3:5], rest[5:7]]
    blocks = [Stage(nn.Sequential(*layers), nn.Identity()) for layers in stages]
    norm, flatten, classifier = net.classifier
    return Network(stem, blocks, classifier, [None] * 4, nn.Sequential(net.avgpool, norm, flatten))


TAPS: dict[str, Callable[[Any], Network]] = {
    "ResNet": from_resnet,  # ResNeXt and Wide ResNet, too
    "RegNet": from_regnet,
    "ShuffleNetV2": from_shufflenetv2,
    "DenseNet": from_densenet,
    "VGG": from_vgg,
    "MobileNetV2": from_features,
    "MobileNetV3": from_features,
    "EfficientNet": from_features,
    "ConvNeXt": from_convnext,
}


@MODELS.register_module()
def torchvision(
    classes: int, name: str, channels: int = 3, pretrained: bool = False, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """A network of torchvision by its `name` there, for ImageNet-sized images.

    Of a family without a rule to split it into stages, such as transformers, the spec names where its features are.

    Args:
        pretrained: with torchvision's first ImageNet weights (IMAGENET1K_V1, as in the field's tables), from its cache or the
            network; the classifier is new where `classes` is not 1000.
        arguments: more of the network's own.

    Raises:
        ValueError: torchvision has no classifier of that name, it has no such argument, or `pretrained` at other than three
            channels.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(
            f"torchvision has no classifier '{name}'; nearest: {', '.join(difflib.get_close_matches(name, known)) or 'none'}"
        )
    if pretrained and channels != 3:
        raise ValueError(f"the pretrained weights of '{name}' are for 3 channels, not {channels}")
    sizes = {"weights": "IMAGENET1K_V1"} if pretrained else {"num_classes": classes}
    try:
        net = models.get_model(name, **sizes, **(arguments or {}))
    except TypeError as error:
        raise ValueError(f"torchvision's '{name}' does not take {arguments} ({error})") from error
    for module in list(net.modules()):
        if type(module).__name__ == "Dropout":
            module.p = 0.0
        for name, inner in module.named_children():
            if type(inner).__name__ == "StochasticDepth":
                setattr(module, name, DropPath())
    if type(net).__name__ not in TAPS:
        if channels != 3:
            replace_first_convolution(net, channels)
        return net
    names = names_of(net)
    network = TAPS[type(net).__name__](net)
    network.library_names = renamed(network, names)
    if network.classifier.out_features != classes:
        network.classifier = nn.Linear(network.classifier.in_features, classes)
    if channels != 3:
        replace_first_convolution(network.stem, channels)
    return network


torchvision.added_later = ("arguments",)  # type: ignore[attr-defined]


def replace_first_convolution(stem: nn.Module, channels: int) -> None:
    """Replace it by one for another number of input channels, drawn anew with the same standard deviation."""
    first = next(module for module in stem.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.new_empty(first.out_channels, channels, *first.kernel_size)
    nn.init.normal_(weight, std=first.weight.std().item())
    first.in_channels, first.weight = channels, nn.Parameter(weight)
