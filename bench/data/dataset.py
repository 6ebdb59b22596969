"""What a data set is: images and labels of two parts, and the facts about them that training needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from bench.data.files import STREAMED_SIZE, Files


class Split(NamedTuple):
    """The training or the test images of a data set."""

    images: Tensor | Files  # (N, C, H, W) uint8 in main memory; or N image files, decoded while they stream
    targets: Tensor  # (N,) int64


Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel, of images in [0, 1]


class Shape(NamedTuple):
    """What matters of a data set to networks and methods before its images are read."""

    channels: int
    height: int
    width: int
    classes: int
    samples: int  # training images

    def __str__(self) -> str:
        """'50000 training images of 3x32x32, 100 classes'."""
        return f"{self.samples} training images of {self.channels}x{self.height}x{self.width}, {self.classes} classes"

    def resized(self, image_size: int) -> Shape:
        """With images of `image_size` pixels on each side; itself where that is 0."""
        return self._replace(height=image_size, width=image_size) if image_size else self


@dataclass(frozen=True)
class Dataset:
    """A data set as a builder returns it."""

    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    auto_augment: Literal["cifar10", "imagenet", "svhn"] = "cifar10"  # AutoAugment's policy for such images
    size: int = 0  # of image files: `load` decodes them all to that height and width; 0: they stream
    folder: Path | None = None  # that holds all image files; the digest of their contents is kept in it

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> Shape:
        """Of image files, which have any size, `size`, or that at which they stream where no recipe sets another."""
        images = self.train.images
        height, width = (self.size or STREAMED_SIZE,) * 2 if isinstance(images, Files) else images.shape[2:]
        return Shape(self.channels, height, width, self.classes, len(self.train.targets))
