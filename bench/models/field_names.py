"""The names that the field's checkpoints give to the weights of our networks.

RepDistiller, mdistiller and their forks hold the same layers in the same order under other names. One function for each file of
networks here turns our names into theirs; the suffix ("weight", "running_mean") stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.models.base import MODELS, Network
from bench.models.wrn import rectified_names

Renaming = Callable[[list[str]], list[str]]  # all of our names of a network to theirs, in the same order

RENAMINGS: dict[str, Renaming] = {}  # by the file of bench/models that holds the network's builder

# How forks call the classifier and the shortcut of one and the same network
CLASSIFIERS = ("fc", "linear", "classifier", "classifier.0", "head")
SHORTCUTS = ("downsample", "shortcut")

# Layers of a unit by their place in its branch. V2's units have the layers of their shortcut before those of their branch.
TWO_OR_THREE = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
SHUFFLE_V1 = {0: "conv1", 1: "bn1", 4: "conv2", 5: "bn2", 7: "conv3", 8: "bn3"}
SHUFFLE_V2 = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 5: "conv3", 6: "bn3"}
SHUFFLE_V2_DOWN = {0: "conv3", 1: "bn3", 3: "conv4", 4: "bn4", 5: "conv5", 6: "bn5"}
SHUFFLE_V2_SHORTCUT = {0: "conv1", 1: "bn1", 2: "conv2", 3: "bn2"}
WIDE = {0: "bn1", 2: "conv1", 3: "bn2", 5: "conv2"}
WIDENING = {0: "conv1", 1: "bn2", 3: "conv2"}
MOBILE_GROUPS = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 4), (3, 0), (3, 3)]  # (stage, unit) at which each of their groups begins

UNIT = re.compile(r"blocks\.(\d+)\.body\.(\d+)\.(branch|shortcut)(?:\.(\d+))?\.(.*)")


def layouts(model: Mapping[str, Any], network: Network) -> Iterator[dict[str, str]]:
    """Their names of a network's weights, to ours; RepDistiller's or the library's own first.

    Args:
        model: the spec that the network was built from.
    """
    if network.library_names:
        yield {theirs: ours for ours, theirs in network.library_names.items()}
        return
    file = getattr(MODELS.get(str(model["type"])), "__module__", "")
    rename = RENAMINGS.get(file.removeprefix("bench.models.")) if file.startswith("bench.models.") else None
    if rename is None:
        return
    own = list(network.state_dict())
    first = dict(zip(rename(own), own, strict=True))
    yield first
    classifier = next(theirs for theirs, ours in first.items() if ours == "classifier.weight").removesuffix("weight")
    for shortcut in SHORTCUTS:
        for other in CLASSIFIERS:
            renamed = {}
            for theirs, ours in first.items():
                if theirs.startswith(classifier):
                    renamed[f"{other}.{theirs.removeprefix(classifier)}"] = ours
                else:
                    renamed[re.sub(rf"\.({'|'.join(SHORTCUTS)})\.", f".{shortcut}.", theirs)] = ours
            if renamed != first:
                yield renamed


def published(model: Mapping[str, Any], network: Network) -> dict[str, str]:
    """Our names of a network's weights, to those of RepDistiller, or of the library that the network is from.

    Raises:
        ValueError: neither has such a network.
    """
    first = next(layouts(model, network), None)
    if first is None:
        raise ValueError(f"no names but ours are known for the weights of '{model['type']}'")
    return {ours: theirs for theirs, ours in first.items()}


def _renaming(file: str) -> Callable[[Renaming], Renaming]:
    def register(renaming: Renaming) -> Renaming:
        RENAMINGS[file] = renaming
        return renaming

    return register


def _prefixed(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with the first fitting prefix replaced; as it is where none fits."""
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@_renaming("resnet")
def resnet(names: list[str]) -> list[str]:
    """Of three stages as RepDistiller's `resnet.py`; of four, such as ResNet-50, as its `resnetv2.py`."""
    three = not any(name.startswith("blocks.3.") for name in names)
    shortcut, classifier = ("downsample", "fc.") if three else ("shortcut", "linear.")

    def rename(name: str) -> str:
        if unit := UNIT.match(name):
            stage, index, part, layer, rest = int(unit[1]) + 1, int(unit[2]) // 2, unit[3], int(unit[4]), unit[5]
            inner = TWO_OR_THREE[layer] if part == "branch" else f"{shortcut}.{layer}"
            return f"layer{stage}.{index}.{inner}.{rest}"
        return _prefixed(name, {"stem.0.": "conv1.", "stem.1.": "bn1.", "classifier.": classifier})

    return [rename(name) for name in names]


@_renaming("vgg")
def vgg(names: list[str]) -> list[str]:
    def rename(name: str) -> str:
        if first := re.match(r"stem\.0\.(\d+)\.(\d+)\.(.*)", name):
            return f"block0.{int(first[1]) // 2 * 3 + int(first[2])}.{first[3]}"
        if later := re.match(r"blocks\.(\d+)\.body\.(\d+)\.(\d+)\.(.*)", name):
            return f"block{int(later[1]) + 1}.{(int(later[2]) - 1) // 2 * 3 + int(later[3])}.{later[4]}"
        return name

    return [rename(name) for name in names]


@_renaming("mobilenetv1")
def mobilenetv1(names: list[str]) -> list[str]:
    """mdistiller's: 14 groups, the first of three layers, the others of six."""

    def rename(name: str) -> str:
        place, _, rest = name.removeprefix("blocks.").replace(".body.", ".").rpartition(".")
        if name.startswith("stem."):
            layer = int(place.removeprefix("stem."))
            return f"model.0.{layer}.{rest}" if layer < 3 else f"model.1.{layer - 3}.{rest}"
        if name.startswith("blocks."):
            stage, layer = map(int, place.split("."))
            return f"model.{(2, 4, 6, 12)[stage] + layer // 6}.{layer % 6}.{rest}"
        return _prefixed(name, {"classifier.": "fc."})

    return [rename(name) for name in names]


@_renaming("mobilenetv2")
def mobilenetv2(names: list[str]) -> list[str]:
    def rename(name: str) -> str:
        if unit := UNIT.match(name):
            stage, index, layer, rest = int(unit[1]), int(unit[2]), unit[4], unit[5]
            group = max(g for g, start in enumerate(MOBILE_GROUPS) if start[0] == stage and start[1] <= index)
            return f"blocks.{group}.{index - MOBILE_GROUPS[group][1]}.conv.{layer}.{rest}"
        return _prefixed(name, {"stem.": "conv1.", "head.": "conv2.", "classifier.": "classifier.0."})

    return [rename(name) for name in names]


@_renaming("shufflenet")
def shufflenet(names: list[str]) -> list[str]:
    """Of V1 and V2; the second has layers between its stages and its classifier."""
    first_version = "head.0.weight" not in names

    def rename(name: str) -> str:
        if unit := UNIT.match(name):
            stage, index, part, layer, rest = int(unit[1]) + 1, int(unit[2]) // 2, unit[3], int(unit[4]), unit[5]
            if first_version:
                layers = SHUFFLE_V1
            elif part == "shortcut":
                layers = SHUFFLE_V2_SHORTCUT
            else:
                layers = SHUFFLE_V2 if index else SHUFFLE_V2_DOWN
            return f"layer{stage}.{index}.{layers[layer]}.{rest}"
        ends = {"stem.0.": "conv1.", "stem.1.": "bn1.", "head.0.": "conv2.", "head.1.": "bn2.", "classifier.": "linear."}
        return _prefixed(name, ends)

    return [rename(name) for name in names]


@_renaming("wrn")
def wrn(names: list[str]) -> list[str]:
    """Of both layouts; theirs has the norm that ends a stage, in the first unit of the next."""
    if "head.norm.weight" not in names:
        names = _with_sums(names)
    widening = {block for block in range(3) if f"blocks.{block}.norm.weight" in names}  # a ReLU and a wider unit come first
    ends = {f"blocks.{block}.norm.": f"block{block + 1}.layer.0.bn1." for block in widening}
    ends |= {"stem.": "conv1.", "head.norm.": "bn1.", "classifier.": "fc."}

    def rename(name: str) -> str:
        unit = UNIT.match(name)
        if unit is None:
            return _prefixed(name, ends)
        block, index, part, layer, rest = int(unit[1]), int(unit[2]), unit[3], unit[4], unit[5]
        place = f"block{block + 1}.layer.{index - (block in widening)}."
        if part == "shortcut":
            return f"{place}convShortcut.{rest}"
        layers = WIDENING if block in widening and index == 1 else WIDE
        return f"{place}{layers[int(layer)]}.{rest}"

    return [rename(name) for name in names]


def _with_sums(names: list[str]) -> list[str]:
    """Names of the layout with `taps="rectified"` as the one with "sums" has them."""
    last = [max(int(name.split(".")[3]) for name in names if name.startswith(f"blocks.{block}.body.")) for block in range(2)]
    units = last[1]  # and a batch norm behind them; a first stage that widens begins with two layers more
    prefixes = rectified_names(units, widens=last[0] > units)
    return [_prefixed(name, prefixes) for name in names]
