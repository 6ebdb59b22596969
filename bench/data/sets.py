"""Data sets: what they are, how a cell's spec names one, and fixed subsets and splits of them.

A builder is registered in `DATASETS`. It takes `root`, the folder that holds the data, and arguments of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmengine.registry import Registry
from torch import Tensor

from bench.data.files import STREAMED_SIZE, Files

COMMON_KEYS = ("train_images", "test_images", "digest", "name")  # of a cell's `data`; the rest are the builder's arguments


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

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> Shape:
        """Of image files, which have any size, that at which they stream where no recipe sets another."""
        images = self.train.images
        height, width = (STREAMED_SIZE, STREAMED_SIZE) if isinstance(images, Files) else images.shape[2:]
        return Shape(self.channels, height, width, self.classes, len(self.train.targets))


def build_dataset(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Dataset:
    """Build from `{"type": key, "root": folder, **arguments}`.

    Raises:
        KeyError, TypeError: no such data set, or no such argument; the message names the nearest ones.
        FileNotFoundError, ValueError: the data are missing or malformed.
    """
    arguments = dict(cfg)
    key = arguments.pop("type")
    builder = registry.get(key)
    if builder is None:
        raise KeyError(f"unknown data set '{key}'{_nearest(key, registry.module_dict)}; known: {_listed(registry.module_dict)}")
    allowed = inspect.signature(builder).parameters
    for name in arguments:
        if name not in allowed:
            raise TypeError(f"data set '{key}' has no argument '{name}'{_nearest(name, allowed)}; it has: {_listed(allowed)}")
    return builder(**arguments)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    match = get_close_matches(str(name), known, n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _listed(known: Mapping[str, Any]) -> str:
    return ", ".join(sorted(known))


DATASETS = Registry("dataset", build_func=build_dataset, locations=["bench.data"])
SHAPES: dict[str, Shape] = {}  # of standard sets
NORMALIZATIONS: dict[str, Normalization] = {}  # of standard sets, where their images need not be read for it
DIGESTS: dict[str, Callable[[Path], str]] = {}  # for the user's own data: SHA-256 of what lies at a path

Builder = Callable[..., Dataset]


def standard_set(key: str, shape: Shape, normalization: Normalization | None = None) -> Callable[[Builder], Builder]:
    """Register the builder of a standard set, whose data are the same everywhere; `shape` is that of all of them."""

    def register(builder: Builder) -> Builder:
        DATASETS.register_module(key, module=builder)
        SHAPES[key] = shape
        if normalization:
            NORMALIZATIONS[key] = normalization
        return builder

    return register


def own_format(key: str, digest_of_path: Callable[[Path], str]) -> Callable[[Builder], Builder]:
    """Register the builder of a format for the user's own data, with the function that digests them."""

    def register(builder: Builder) -> Builder:
        DATASETS.register_module(key, module=builder)
        DIGESTS[key] = digest_of_path
        return builder

    return register


def load(spec: Mapping[str, Any], root: str | None = None) -> Dataset:
    """The data of a cell.

    Args:
        spec: `{"type": key, **arguments}`. It may also hold "train_images" and "test_images", the sizes of fixed stratified
            subsets (0: all); "digest", which the data must have; and "name", by which people know the data.
        root: the folder that holds the data.

    Raises:
        FileNotFoundError, ValueError: the data are missing, malformed, or do not have the digest.
    """
    data = DATASETS.build({"root": root} | {name: value for name, value in spec.items() if name not in COMMON_KEYS})
    if spec.get("digest") and digest(spec, root) != spec["digest"]:
        raise ValueError(f"the data of '{spec['type']}' are not those that the cell was planned with")
    return replace(
        data,
        train=_subset(data.train, int(spec.get("train_images") or 0), "train_images"),
        test=_subset(data.test, int(spec.get("test_images") or 0), "test_images"),
    )


def shape_of(spec: Mapping[str, Any], root: str | None = None) -> Shape:
    """The shape of a cell's data. Those of a standard set need not be there; of image folders no file is decoded.

    Raises:
        OSError, ValueError, KeyError: data of another kind that are missing or malformed.
    """
    if spec["type"] in SHAPES:
        shape = SHAPES[spec["type"]]
        return shape._replace(samples=spec["train_images"] or shape.samples)
    found = load({**spec, "digest": None} | ({"size": 0} if spec["type"] == "imagefolder" else {}), root)
    streams = isinstance(found.train.images, Files)
    return found.shape.resized(spec.get("size", 0) if streams else 0)


def normalization_of(spec: Mapping[str, Any], root: str | None = None) -> Normalization:
    """Mean and std of a cell's data, as networks get them. The data of most standard sets need not be there.

    Raises:
        OSError, ValueError, KeyError: data of another kind that are missing or malformed.
    """
    if spec["type"] in NORMALIZATIONS:
        return NORMALIZATIONS[spec["type"]]
    found = load({**spec, "digest": None} | ({"size": 0} if spec["type"] == "imagefolder" else {}), root)
    return found.mean, found.std


def digest(spec: Mapping[str, Any], root: str | None = None) -> str | None:
    """SHA-256 of the user's own data: of arrays the bytes, of image folders names and sizes. None for other sets.

    Raises:
        OSError, ValueError: the data are missing or malformed.
    """
    if spec["type"] not in DIGESTS:
        return None
    return DIGESTS[spec["type"]](location(root, spec.get("path")))


def location(root: str | None, path: str | None) -> Path:
    """`path` under `root`; either alone is enough.

    Raises:
        ValueError: neither is given.
    """
    if root is None and path is None:
        raise ValueError("for data of your own, give 'path' or the data root")
    return Path(root or ".").expanduser() / Path(path or ".").expanduser()


# Subsets


def hold_out(train: Split, share: float, seed: int = 0) -> tuple[Split, Split]:
    """Split off a stratified validation part: (the rest, the part), both in the order of `train`.

    The engine leaves `seed` at its default, so that the part is the same in all trainings.
    """
    held = stratified(train.targets, round(share * len(train.targets)), seed)
    rest = torch.ones(len(train.targets), dtype=torch.bool)
    rest[held] = False
    return _take(train, rest.nonzero().squeeze(1)), _take(train, held)


def stratified(targets: Tensor, count: int, seed: int = 0) -> Tensor:
    """Sorted positions (count,) of samples drawn without replacement, classes in proportion (largest remainders)."""
    sizes = torch.bincount(targets)
    quotas = count * sizes.double() / len(targets)
    takes = quotas.long()
    takes[(quotas - takes).argsort(descending=True, stable=True)[: count - int(takes.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    picked = []
    for label, take in enumerate(takes.tolist()):
        members = (targets == label).nonzero().squeeze(1)
        picked.append(members[torch.randperm(len(members), generator=generator)[:take]])
    return torch.cat(picked).sort().values


def _subset(split: Split, count: int, name: str) -> Split:
    available = len(split.targets)
    if not 0 <= count <= available:
        raise ValueError(f"{name}: {count} is not possible; allowed: 1 to {available}, or 0 for all")
    return _take(split, stratified(split.targets, count)) if 0 < count < available else split


def _take(split: Split, positions: Tensor) -> Split:
    return Split(split.images[positions], split.targets[positions])


# What builders share


def split_of(images: np.ndarray | Tensor, labels: np.ndarray | Tensor | Sequence[int]) -> Split:
    """From (N, H, W, C) or (N, H, W) uint8 and N labels, arrays or tensors."""
    pixels = torch.as_tensor(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Split(pixels, torch.as_tensor(np.asarray(labels, dtype=np.int64)))


def statistics(images: Tensor | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W) taken as [0, 1]; sums of integers, hence exact."""
    assert isinstance(images, Tensor)
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(1000):
        values = part.double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images[:, 0].numel()
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1).sqrt()  # a constant channel stays finite
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
