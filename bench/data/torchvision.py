"""Every set for classification that torchvision reads, by its name there."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.data import memory
from bench.data.dataset import Dataset, Split
from bench.data.files import Files, center_crop
from bench.data.sets import DATASETS, IMAGENET_MEAN, IMAGENET_STD, image_size, statistics, with_test
from bench.data.standard import from_torchvision

Arguments = dict[str, Any]


class Parts(NamedTuple):
    """What selects the training and the test images in a constructor; `test` is None where torchvision knows no split."""

    train: Arguments
    test: Arguments | None


_TRAIN = Parts({"train": True}, {"train": False})
_SPLIT = Parts({"split": "train"}, {"split": "test"})
_VAL = Parts({"split": "train"}, {"split": "val"})
_ONE = Parts({}, None)
SETS = {
    "CLEVRClassification": _VAL,
    "Caltech101": _ONE,
    "Caltech256": _ONE,
    "Country211": _SPLIT,
    "DTD": _SPLIT,
    "EMNIST": _TRAIN,
    "EuroSAT": _ONE,
    "FER2013": _SPLIT,
    "FGVCAircraft": Parts({"split": "trainval"}, {"split": "test"}),
    "Flowers102": _SPLIT,
    "Food101": _SPLIT,
    "GTSRB": _SPLIT,
    "INaturalist": Parts({"version": "2021_train"}, {"version": "2021_valid"}),
    "Imagenette": _VAL,
    "KMNIST": _TRAIN,
    "MNIST": _TRAIN,
    "OxfordIIITPet": Parts({"split": "trainval"}, {"split": "test"}),
    "PCAM": _SPLIT,
    "Places365": Parts({"split": "train-standard"}, {"split": "val"}),
    "QMNIST": _TRAIN,
    "RenderedSST2": _SPLIT,
    "SEMEION": _ONE,
    "STL10": _SPLIT,
    "SUN397": _ONE,
    "StanfordCars": _SPLIT,
    "USPS": _TRAIN,
}
SHORT = {  # sets that have a type of their own
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "FashionMNIST": "fashion_mnist",
    "ImageNet": "{type: imagefolder, path: FOLDER}",
    "SVHN": "svhn",
}
DEFAULTS: dict[str, Arguments] = {"EMNIST": {"split": "balanced"}}
RESERVED = ("root", "train", "download", "loader", "transform", "target_transform", "transforms")
# Of these two torchvision decodes the files itself and takes no loader; their paths stand in attributes.
PATHS: dict[str, Callable[[Any], Iterable[tuple[Any, int]]]] = {
    "GTSRB": lambda part: part._samples,
    "OxfordIIITPet": lambda part: zip(part._images, part._labels, strict=True),
}


@DATASETS.register_module()
def torchvision(
    name: str,
    root: str | None = None,
    split: str = "",
    size: int = 0,
    test_share: float = 0.0,
    arguments: dict[str, Any] | None = None,
) -> Dataset:
    """A set of torchvision by its `name` there: STL10, Flowers102, Food101, OxfordIIITPet, EMNIST, GTSRB, DTD and others.

    It is downloaded into the data root where it is missing and torchvision can. Classes are the labels that occur, in their
    order. Sets of image files stream from disk, as RGB, unless `size` is given. Others are held in memory as they are, gray
    ones with one channel; mean and std are those of their training images.

    Args:
        split: the part to train on where there are several, or a sum of parts: 'train+val' of Flowers102 or DTD.
        size: all images are resized once, when they are read: the shorter side to `size`, then center-cropped.
        test_share: for sets without a test part (Caltech101, Caltech256, EuroSAT, SEMEION, SUN397): the share, in (0, 1), of
            all images to test on. Fixed and stratified.
        arguments: more of the class's own, such as {split: letters} of EMNIST or {partition: 2} of DTD.

    Raises:
        FileNotFoundError, ValueError: torchvision has no such set, or it is missing and cannot be downloaded.
    """
    parts = _parts(name, split, arguments or {})
    wanted = [*parts[0], *([parts[1]] if parts[1] is not None else [])]
    read = from_torchvision(name, root, f"what torchvision.datasets.{name} reads", wanted)
    names = [str(each) for each in getattr(read[0], "classes", getattr(read[0], "categories", []))]
    splits = [_images(name, part, image_size(size)) for part in read]
    train = _joined(splits[: len(parts[0])])
    lacks = f"torchvision's {name} has no test part"
    train, test = with_test(train, splits[-1] if parts[1] is not None else None, test_share, lacks)
    labels = torch.cat([train.targets, test.targets]).unique()
    train, test = (part._replace(targets=torch.searchsorted(labels, part.targets)) for part in (train, test))
    named = tuple(names[label] if label < len(names) else str(label) for label in labels.tolist())
    if isinstance(train.images, Files):
        folder = Path(os.path.commonpath([str(file.parent) for part in (train, test) for file in part.images]))
        both = IMAGENET_MEAN, IMAGENET_STD
        return Dataset(train, test, len(named), *both, named, auto_augment="imagenet", size=size, folder=folder)
    return Dataset(train, test, len(named), *statistics(train.images), named)


def _parts(name: str, split: str, more: Arguments) -> tuple[list[Arguments], Arguments | None]:
    """What selects the parts to train on, and the test part.

    Raises:
        ValueError: no such set, or no such argument.
    """
    from torchvision import datasets

    if name in SHORT:
        raise ValueError(f"write {name} as data: {SHORT[name]}")
    if name not in SETS:
        close = get_close_matches(name, [*SETS, *SHORT], n=1, cutoff=0.5)
        nearest = f" (did you mean '{close[0]}'?)" if close else ""
        raise ValueError(f"torchvision has no set for classification called '{name}'{nearest}; known: {', '.join(SETS)}")
    taken = inspect.signature(getattr(datasets, name).__init__).parameters
    allowed = sorted(key for key, each in taken.items() if key not in (*RESERVED, "self") and each.kind != each.VAR_KEYWORD)
    if unknown := sorted(set(more) - set(allowed)):
        raise ValueError(f"arguments: {name} takes no '{unknown[0]}'; allowed: {', '.join(allowed) or 'none'}")
    given = {**DEFAULTS.get(name, {}), **more}
    train, test = SETS[name]
    if split and "split" not in train:
        raise ValueError(f"split: '{split}' does not suit {name}, which has no parts to choose from")
    chosen = [{"split": each} for each in split.split("+")] if split else [train]
    return [{**given, **each} for each in chosen], None if test is None else {**given, **test}


def _images(name: str, part: Any, size: int) -> Split:
    """Its files, or its images in memory, and their labels as torchvision numbers them."""
    if name in PATHS:
        return _of_paths(PATHS[name](part))
    samples = (part[position] for position in range(len(part)))
    first, _ = part[0]
    if isinstance(first, str):
        return _of_paths(samples)
    if getattr(first, "filename", ""):  # opened, not yet decoded
        return _of_paths((image.filename, label) for image, label in samples)
    return _stacked(samples, len(part), first, size, name)


def _of_paths(samples: Iterable[tuple[Any, int]]) -> Split:
    found = [(str(path), int(label)) for path, label in samples]
    return Split(Files([path for path, _ in found]), torch.tensor([label for _, label in found]))


def _stacked(samples: Iterator[tuple[Image.Image, Any]], count: int, first: Image.Image, size: int, name: str) -> Split:
    """(N, C, H, W) in memory, with as many channels as the first image has: 1 of gray ones, else 3."""
    mode = "L" if first.mode in ("1", "L") else "RGB"
    width, height = (size, size) if size else first.size
    channels = len(Image.new(mode, (1, 1)).getbands())
    memory.require(count * height * width * channels, f"{count} images of torchvision's {name}", "give a smaller `size`")
    pixels = np.empty((count, height, width, channels), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for position, (image, label) in enumerate(samples):
        fitting = center_crop(image, size, size) if size and image.size != (size, size) else image
        if fitting.size != (width, height):
            sizes = f"{width}x{height} and {image.width}x{image.height}"
            raise ValueError(f"torchvision's {name} has images of several sizes ({sizes}); give `size`, in pixels")
        pixels[position] = np.asarray(fitting.convert(mode)).reshape(height, width, channels)
        labels[position] = int(label)
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels))


def _joined(splits: list[Split]) -> Split:
    images: Tensor | Files
    if isinstance(splits[0].images, Files):
        images = Files([str(file) for split in splits for file in split.images])  # type: ignore[union-attr]
    else:
        images = torch.cat([split.images for split in splits])  # type: ignore[misc]
    return Split(images, torch.cat([split.targets for split in splits]))
