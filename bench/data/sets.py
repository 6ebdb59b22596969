"""Data sets: what they are, how a cell's spec names one, and fixed subsets and splits of them.

A builder is registered in `DATASETS`. It takes `root`, the folder that holds the data, and arguments of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.registry import Registry
from torch import Tensor

from bench.data import checks, digests
from bench.data.dataset import Dataset, Normalization, Shape, Split
from bench.data.files import Files, decode
from bench.plugins import looked_up
from bench.user_files import expanded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of image files
COMMON_KEYS = ("train_images", "test_images", "digest", "name")  # of a cell's `data`; the rest are the builder's arguments


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
TESTED: dict[str, int] = {}  # test images of standard sets
NORMALIZATIONS: dict[str, Normalization] = {}  # of standard sets, where their images need not be read for it
DIGESTS: dict[str, Callable[[Path], str]] = {}  # of formats for the user's own data: SHA-256 of what lies at a path

Builder = Callable[..., Dataset]


def standard_set(
    key: str, shape: Shape, tested: int, normalization: Normalization | None = None
) -> Callable[[Builder], Builder]:
    """Register the builder of a standard set, whose data are the same everywhere.

    Args:
        shape: of all of them.
        tested: the number of test images.
    """

    def register(builder: Builder) -> Builder:
        DATASETS.register_module(key, module=builder)
        SHAPES[key], TESTED[key] = shape, tested
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
    """The data of a cell, checked; image files of a set with a `size` are decoded.

    Args:
        spec: `{"type": key, **arguments}`. It may also hold "train_images" and "test_images", the sizes of fixed stratified
            subsets (0: all); "digest", which the data must have; and "name", by which people know the data.
        root: the folder that holds the data.

    Raises:
        FileNotFoundError, ValueError: the data are missing or malformed, do not have the digest, or do not fit into memory.
    """
    data = _build(spec, root)
    if spec.get("digest") and _digest(spec, root, data) != spec["digest"]:
        raise ValueError(f"the data of '{spec['type']}' are not those that the cell was planned with")
    data = _with_subsets(data, spec)
    return replace(data, train=_decoded(data.train, data.size), test=_decoded(data.test, data.size))


def _decoded(split: Split, size: int) -> Split:
    return split._replace(images=decode(split.images, size)) if size and isinstance(split.images, Files) else split


def _build(spec: Mapping[str, Any], root: str | None) -> Dataset:
    arguments = {key: value for key, value in spec.items() if key not in COMMON_KEYS or takes(spec["type"], key)}
    data = DATASETS.build({"root": root} | arguments)
    if not isinstance(data, Dataset):
        raise ValueError(f"data set '{spec['type']}' returns a {type(data).__name__}; a data set's function returns a Dataset")
    try:
        checks.check(data)
    except ValueError as error:
        raise ValueError(f"data set '{spec['type']}': {error}") from None
    return data


def _with_subsets(data: Dataset, spec: Mapping[str, Any]) -> Dataset:
    return replace(
        data,
        train=_subset(data.train, int(spec.get("train_images") or 0), "train_images"),
        test=_subset(data.test, int(spec.get("test_images") or 0), "test_images"),
    )


class Look(NamedTuple):
    """What a plan knows of data before they are trained on."""

    shape: Shape
    digest: str | None = None  # SHA-256 of the user's own data; None of a standard set, which is the same everywhere
    notes: tuple[str, ...] = ()  # what is suspicious about them, a line each
    normalization: Normalization | None = None  # None where images of a standard set would have to be read for it
    streamed: bool = False  # whether they are image files of any size


def look(spec: Mapping[str, Any], root: str | None = None) -> Look:
    """Shape, digest and doubts. Data of a standard set need not be there; image files are not decoded.

    Raises:
        OSError, ValueError, KeyError: data of another kind that are missing or malformed.
    """
    if is_standard(spec["type"]):
        shape = SHAPES[spec["type"]]
        for name, available in (("train_images", shape.samples), ("test_images", TESTED[spec["type"]])):
            _check_subset(int(spec.get(name) or 0), available, name)
        shape = shape._replace(samples=spec.get("train_images") or shape.samples)
        return Look(shape, notes=tuple(checks.few(shape)), normalization=NORMALIZATIONS.get(spec["type"]))
    every = _build(spec, root)
    data = _with_subsets(every, spec)
    streamed = isinstance(data.train.images, Files) and not data.size
    return Look(data.shape, _digest(spec, root, every), tuple(checks.notes(data)), (data.mean, data.std), streamed)


def takes(key: str, name: str) -> bool:
    """Whether the builder of a data set has an argument of that name."""
    builder = looked_up(DATASETS, key, "data")
    return callable(builder) and name in inspect.signature(builder).parameters


def is_standard(key: str) -> bool:
    """Whether it is a set that ships with the bench, and whose data are the same everywhere."""
    return key in SHAPES and DATASETS.get(key).__module__.partition(".")[0] == "bench"


def digest(spec: Mapping[str, Any], root: str | None = None) -> str | None:
    """SHA-256 of the user's own data: of arrays the bytes, of image files names and contents. None for standard sets.

    Raises:
        OSError, ValueError, KeyError: the data are missing or malformed.
    """
    if is_standard(spec["type"]):
        return None
    return _digest(spec, root, None if spec["type"] in DIGESTS else _build(spec, root))


def _digest(spec: Mapping[str, Any], root: str | None, data: Dataset | None) -> str | None:
    """`data`: as the builder returned them; needed for a format without a digest of its own."""
    if is_standard(spec["type"]):
        return None
    if spec["type"] in DIGESTS:
        return DIGESTS[spec["type"]](location(root, spec.get("path")))
    assert data is not None
    return digests.of_dataset(data)


def location(root: str | None, path: str | None) -> Path:
    """`path` under `root`; either alone is enough.

    Raises:
        ValueError: neither is given.
    """
    if root is None and path is None:
        raise ValueError("for data of your own, give 'path' or the data root")
    return expanded(root or ".") / expanded(path or ".")


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
    by_class = targets.argsort(stable=True).split(sizes.tolist())
    for members, take in zip(by_class, takes.tolist(), strict=True):
        picked.append(members[torch.randperm(len(members), generator=generator)[:take]])
    return torch.cat(picked).sort().values


def _subset(split: Split, count: int, name: str) -> Split:
    available = len(split.targets)
    _check_subset(count, available, name)
    return _take(split, stratified(split.targets, count)) if 0 < count < available else split


def _check_subset(count: int, available: int, name: str) -> None:
    if not 0 <= count <= available:
        raise ValueError(f"{name}: {count} is not possible; allowed: 1 to {available}, or 0 for all")


def _take(split: Split, positions: Tensor) -> Split:
    return Split(split.images[positions], split.targets[positions])


# What builders share


def split_of(images: np.ndarray | Tensor, labels: np.ndarray | Tensor | Sequence[int]) -> Split:
    """From (N, H, W, C) or (N, H, W) uint8 and N labels, arrays or tensors."""
    pixels = torch.as_tensor(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Split(pixels, torch.as_tensor(np.asarray(labels, dtype=np.int64)))


def with_test(train: Split, test: Split | None, share: float, lacks: str) -> tuple[Split, Split]:
    """Training and test images; a share of the former, fixed and stratified, where there are no test images.

    Args:
        lacks: what is missing where there are no test images, for the error.

    Raises:
        ValueError: a share beside test images.
        FileNotFoundError: neither.
    """
    if test is not None and share:
        raise ValueError(f"test_share: {share} does not suit data that have a test part; leave it out")
    if test is not None:
        return train, test
    if not 0 < share < 1:
        raise FileNotFoundError(f"{lacks}; or give test_share, in (0, 1): the share of all images to test on")
    if not 0 < round(share * len(train.targets)) < len(train.targets):
        part = "all of them" if share > 0.5 else "none"
        raise ValueError(f"test_share: {share:g} of {len(train.targets)} images is {part}")
    return hold_out(train, share)


def image_size(size: int) -> int:
    """
    Raises:
        ValueError: no number of pixels.
    """
    if not 0 <= size <= 4096:
        raise ValueError(f"size: {size} is not possible; allowed: 1 to 4096 pixels, or 0 to leave the images as they are")
    return size


def number(train: Sequence[Any], test: Sequence[Any] | None) -> tuple[tuple[str, ...], Tensor, Tensor | None]:
    """Class names, and the labels (N,) of both parts as classes; sorted by number where all labels are numbers, else by text.

    Raises:
        ValueError: a test label that no training image has.
    """
    given = {str(label).strip() for label in train}
    numbers = all(label.isdecimal() for label in given)
    names = sorted(given, key=int) if numbers else sorted(given)
    classes = {name: label for label, name in enumerate(names)}
    if unknown := sorted({str(label).strip() for label in test or ()} - given):
        raise ValueError(f"test images have labels that no training image has: {', '.join(unknown[: checks.LISTED])}")

    def targets(labels: Sequence[Any]) -> Tensor:
        return torch.tensor([classes[str(label).strip()] for label in labels])

    return tuple(names), targets(train), None if test is None else targets(test)


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
