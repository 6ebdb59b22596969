"""Whether a data set can be trained on: what must be so, and what is suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.data.dataset import Dataset, Shape, Split
from bench.data.files import Files

MOST_CLASSES = 100_000  # more would not fit into a network, and labels that large are no numbers of classes
COMPARED = 100_000  # images; more would take seconds at each plan
LISTED = 5  # classes that a note names before it counts the rest
COLORS = (1, 3, 4)  # channels of gray images, of colors, of colors with transparency


def check(data: Dataset) -> None:
    """Types, shapes and ranges.

    Raises:
        ValueError: something is not as it must be; one line that names it and what is allowed.
    """
    if data.classes < 2:
        raise ValueError(f"{data.classes} classes: a classification needs at least 2")
    check_count(data.classes)
    if len(data.class_names) != data.classes:
        raise ValueError(f"{len(data.class_names)} class names for {data.classes} classes")
    if len(data.mean) != len(data.std) or not all(std > 0 for std in data.std):
        raise ValueError(f"mean {data.mean} and std {data.std}: allowed: one number for each channel, std above 0")
    for part, split in (("train", data.train), ("test", data.test)):
        _check_images(split, part, data)
        _check_targets(split, part, data.classes)
    train, test = data.train.images, data.test.images
    if isinstance(train, Tensor) and isinstance(test, Tensor) and train.shape[1:] != test.shape[1:]:
        raise ValueError(f"training images are {tuple(train.shape[1:])}, test images {tuple(test.shape[1:])}; they must agree")


def check_count(classes: int) -> None:
    """
    Raises:
        ValueError: more classes than any network has.
    """
    if classes > MOST_CLASSES:
        raise ValueError(f"{classes} classes; allowed: at most {MOST_CLASSES}, labels from 0 on, without gaps")


def _check_images(split: Split, part: str, data: Dataset) -> None:
    images = split.images
    if isinstance(images, Files):
        if not len(images):
            raise ValueError(f"the {part} part has no images")
        return
    if not isinstance(images, Tensor):
        raise ValueError(f"{part} images are a {type(images).__name__}; allowed: a uint8 tensor (N, C, H, W), or Files")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        floats = " (of images in [0, 1]: multiply by 255 and round)" if images.is_floating_point() else ""
        raise ValueError(f"{part} images are {images.dtype}; allowed: uint8 from 0 to 255{floats}")
    if images.ndim != 4 or 0 in shape:
        raise ValueError(f"{part} images have the shape {shape}; allowed: (N, C, H, W), not empty")
    if shape[1] != len(data.mean):
        last = "; (N, H, W, C) must be permuted to (N, C, H, W)" if shape[3] == len(data.mean) else ""
        raise ValueError(f"{part} images of shape {shape} have {shape[1]} channels, and mean has {len(data.mean)}{last}")


def _check_targets(split: Split, part: str, classes: int) -> None:
    targets = split.targets
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        found = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"{part} targets are {found}; allowed: an int64 tensor (N,)")
    if targets.shape != (len(split.images),):
        raise ValueError(f"{part} targets have the shape {tuple(targets.shape)} for {len(split.images)} images")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{part} targets reach from {low} to {high}; allowed: 0 to {classes - 1}, since there are {classes} classes"
        )


def few(shape: Shape) -> list[str]:
    """What is suspicious of a subset of a standard set, before its images are read."""
    absent = shape.classes - shape.samples
    return [f"at least {absent} of {shape.classes} classes have no training image"] if absent > 0 else []


def notes(data: Dataset) -> list[str]:
    """What is suspicious, a line each: classes without a training image, images that seem to have lost their range, and
    test images that are trained on."""
    found = []
    trained = torch.bincount(data.train.targets, minlength=data.classes)
    tested = torch.bincount(data.test.targets, minlength=data.classes)
    if absent := (trained == 0).nonzero().flatten().tolist():
        names = ", ".join(data.class_names[label] for label in absent[:LISTED])
        names += f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
        found.append(f"{len(absent)} of {data.classes} classes have no training image: {names}")
        if wrong := int(tested[absent].sum()):
            found.append(f"{wrong} of {len(data.test.targets)} test images are of classes without a training image")
    images = data.train.images
    if isinstance(images, Tensor):
        low, high = images.min(), images.max()
        if low == high:
            found.append(f"every pixel of the training images is {int(low)}")
        elif high == 1:
            found.append("no pixel is above 1: if these were images in [0, 1], multiply them by 255 before they become uint8")
    if shared := _shared(data.train.images, data.test.images):
        found.append(f"{shared} of {len(data.test.targets)} test images are training images, too")
    return found


def _shared(train: Tensor | Files, test: Tensor | Files) -> int:
    """How many test images are among the training images: of files by their paths, of arrays by all pixels."""
    if isinstance(train, Files) and isinstance(test, Files):
        return train.shared_with(test)
    if isinstance(train, Files) or isinstance(test, Files) or len(train) + len(test) > COMPARED:
        return 0
    known = {hash(image.tobytes()) for image in train.numpy()}
    return sum(hash(image.tobytes()) in known for image in test.numpy())


def looks_channels_first(shape: Sequence[int]) -> bool:
    """Whether an array that should be (N, H, W, C) is more likely (N, C, H, W), as torch has images."""
    _, first, second, last = shape
    square = second == last and first < last
    return last not in COLORS and (square or (first in COLORS and second != first))
