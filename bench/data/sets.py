"""Data sets: where they come from, checked; fixed subsets and splits of them.

A builder is registered in `DATASETS` and takes `root`, the folder that holds the data, and arguments of its own.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock
from mmengine.registry import Registry
from torch import Tensor

from bench.data.files import Files, decode, scan

DEFAULT_ROOT = "data"  # in the current folder
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMMON_KEYS = ("train_images", "test_images", "digest", "name")  # of a cell's `data`; the rest are the builder's arguments


class Split(NamedTuple):
    images: Tensor | Files  # (N, C, H, W) uint8 in main memory; or N image files, decoded while they stream
    targets: Tensor  # (N,) int64


@dataclass(frozen=True)
class Dataset:
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


def build_dataset(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Dataset:
    """Build from `{"type": key, "root": folder, **arguments}`; unknown keys are refused with the known ones."""
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


DATASETS = Registry("dataset", build_func=build_dataset, locations=["bench.data.sets"])


def load(spec: Mapping[str, Any], root: str | None = None) -> Dataset:
    """The data of a cell, from the folder `root`.

    Args:
        spec: `{"type": key, **arguments}`, and optionally "train_images" and "test_images", the sizes of fixed stratified
            subsets (0: all), "digest", which the data found must have, and "name", which tells people what they are.

    Raises:
        FileNotFoundError, ValueError: the data are missing, malformed, or not the ones that `digest` names.
    """
    data = DATASETS.build({"root": root} | {name: value for name, value in spec.items() if name not in COMMON_KEYS})
    if spec.get("digest") and digest(spec, root) != spec["digest"]:
        raise ValueError(f"the data of '{spec['type']}' are not those that the cell was planned with")
    return replace(
        data,
        train=_subset(data.train, int(spec.get("train_images") or 0), "train_images"),
        test=_subset(data.test, int(spec.get("test_images") or 0), "test_images"),
    )


def digest(spec: Mapping[str, Any], root: str | None = None) -> str | None:
    """SHA-256 of the user's own data: of arrays the bytes, of image folders names and sizes. None for other sets."""
    digests: dict[str, Callable[..., str]] = {"npz": _npz_digest, "imagefolder": _imagefolder_digest}
    if spec["type"] not in digests:
        return None
    return digests[spec["type"]](_location(root, spec.get("path")))


def hold_out(train: Split, share: float, seed: int = 0) -> tuple[Split, Split]:
    """Split off a stratified validation part: (the rest, the part), both in the order of `train`.

    The engine leaves `seed` alone, so that the part is the same in all trainings.
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


def _location(root: str | None, path: str | None) -> Path:
    """`path` under `root`; either alone is enough."""
    if root is None and path is None:
        raise ValueError("data of your own need their place: give 'path', or the data root")
    return Path(root or ".").expanduser() / Path(path or ".").expanduser()


# The standard sets


@DATASETS.register_module("digits")
def digits(root: str | None = None) -> Dataset:
    """Scikit-learn's handwritten digits, 8x8, part of that package: 1,000 to train on, 797 to test, stratified, fixed."""
    package = find_spec("sklearn")  # read as its `load_digits` does; importing that takes 1.3 s
    if package is None or not package.origin:
        raise FileNotFoundError("digits come with scikit-learn, which is not installed: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    train, test = hold_out(_split(pixels, table[:, 64]), 797 / 1797)
    mean, std = _statistics(train.images)
    return Dataset(train, test, 10, mean, std, tuple("0123456789"))


@DATASETS.register_module("cifar10")
def cifar10(root: str | None = None) -> Dataset:
    """CIFAR-10, 32x32, 50,000 + 10,000 images."""
    train, test = _from_torchvision("CIFAR10", root, "cifar-10-batches-py", [{"train": True}, {"train": False}])
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Dataset(_split(train.data, train.targets), _split(test.data, test.targets), 10, mean, std, tuple(train.classes))


@DATASETS.register_module("cifar100")
def cifar100(root: str | None = None) -> Dataset:
    """CIFAR-100, 32x32, 50,000 + 10,000 images."""
    train, test = _from_torchvision("CIFAR100", root, "cifar-100-python", [{"train": True}, {"train": False}])
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return Dataset(_split(train.data, train.targets), _split(test.data, test.targets), 100, mean, std, tuple(train.classes))


@DATASETS.register_module("fashion_mnist")
def fashion_mnist(root: str | None = None) -> Dataset:
    """Fashion-MNIST, 28x28 grey, 60,000 + 10,000 images."""
    train, test = _from_torchvision("FashionMNIST", root, "FashionMNIST/raw", [{"train": True}, {"train": False}])
    return Dataset(
        _split(train.data, train.targets), _split(test.data, test.targets), 10, (0.2860,), (0.3530,), tuple(train.classes)
    )


@DATASETS.register_module("svhn")
def svhn(root: str | None = None) -> Dataset:
    """Street View House Numbers, cropped, 32x32, 73,257 + 26,032 images; without the extra ones."""
    train, test = _from_torchvision("SVHN", root, "train_32x32.mat and test_32x32.mat", [{"split": "train"}, {"split": "test"}])
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    splits = [_split(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
    return Dataset(splits[0], splits[1], 10, mean, std, tuple("0123456789"), auto_augment="svhn")


def _from_torchvision(name: str, root: str | None, place: str, parts: list[dict[str, Any]]) -> list[Any]:
    """torchvision's data set in each of its parts; downloaded where it is not there, by one process at a time."""
    from torchvision import datasets

    folder = Path(root or DEFAULT_ROOT).expanduser().resolve()
    builder = getattr(datasets, name)
    try:
        return [builder(folder, **part, download=False) for part in parts]
    except RuntimeError:  # torchvision's answer to files that are missing or damaged
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            return [builder(folder, **part, download=True) for part in parts]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} is not in {folder}: {place} is missing or damaged there, and the download failed ({error}). "
            f"Name the folder that holds it with --data-root, or let torchvision download it where there is a network: "
            f"python -c \"from torchvision.datasets import {name}; {name}('.', download=True)\""
        ) from error


def _split(images: Any, labels: Any) -> Split:
    """From (N, H, W, C) or (N, H, W) uint8 and N labels."""
    pixels = torch.as_tensor(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Split(pixels, torch.as_tensor(np.asarray(labels, dtype=np.int64)))


def _statistics(images: Tensor | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images taken as [0, 1]; sums of integers, hence exact."""
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


# The user's own data

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


@DATASETS.register_module("npz")
def npz(root: str | None = None, path: str | None = None) -> Dataset:
    """Arrays of your own in one .npz file; see the errors for what is allowed.

    Keys: train_images, test_images, (N, H, W, C) or (N, H, W) uint8; train_labels, test_labels, (N,) integers from 0; and
    optionally class_names. Mean and standard deviation are those of the training images.
    """
    arrays = _read_npz(_location(root, path))
    train = _split(arrays["train_images"], arrays["train_labels"])
    test = _split(arrays["test_images"], arrays["test_labels"])
    mean, std = _statistics(train.images)
    names = tuple(str(name) for name in arrays["class_names"])
    return Dataset(train, test, len(names), mean, std, names)


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    """The arrays, checked; class names "0", "1", ... where there are none."""
    arrays = _open_npz(file)

    def refuse(key: str, allowed: str) -> ValueError:
        found = arrays[key]
        return ValueError(f"{file}: '{key}' is {found.dtype} of shape {found.shape}; allowed: {allowed}")

    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise refuse(f"{part}_images", "uint8 of shape (N, H, W, C) or (N, H, W), not empty")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise refuse(f"{part}_labels", f"integers of shape ({len(images)},), one for each image")
        if labels.min() < 0:
            raise ValueError(f"{file}: '{part}_labels' has the label {labels.min()}; allowed: 0 to classes - 1")
    if arrays["test_images"].shape[1:] != arrays["train_images"].shape[1:]:
        raise refuse("test_images", f"(N, {', '.join(map(str, arrays['train_images'].shape[1:]))}), as 'train_images' has it")
    classes = 1 + int(max(arrays["train_labels"].max(), arrays["test_labels"].max()))
    names = arrays.setdefault("class_names", np.array([str(label) for label in range(classes)]))
    if names.dtype.kind == "S":
        names = arrays["class_names"] = np.char.decode(names, "utf-8")
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < classes:
        raise refuse("class_names", f"at least {classes} texts, since the largest label is {classes - 1}")
    return arrays


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; npz needs the path of an .npz file (numpy.savez writes one)")
    try:
        with np.load(file, allow_pickle=False) as archive:
            present = archive.files
            arrays = {key: archive[key] for key in (*NPZ_KEYS, "class_names") if key in present}
    except (BadZipFile, EOFError, TypeError, OSError, ValueError) as error:  # TypeError: a single array
        raise ValueError(f"{file} is no .npz file of plain arrays, or it is damaged ({error})") from error
    if missing := [key for key in NPZ_KEYS if key not in arrays]:
        raise ValueError(f"{file} has no {', '.join(missing)}; it holds: {', '.join(present) or 'nothing'}")
    return arrays


def _npz_digest(file: Path) -> str:
    arrays = _open_npz(file)
    hashed = hashlib.sha256()
    for key in NPZ_KEYS:
        hashed.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        hashed.update(np.ascontiguousarray(arrays[key]).data)
    return hashed.hexdigest()


@DATASETS.register_module("imagefolder")
def imagefolder(root: str | None = None, path: str | None = None, size: int = 0) -> Dataset:
    """Image files in class folders: train/CLASS/*, and val/CLASS/* (or test/CLASS/*). Grey ones become RGB.

    Args:
        size: 0 streams the files from disk, batch by batch, for sets that are too large for memory; the recipe's crop must
            then be 'resized'. Otherwise all images are held in memory, their shorter side resized to `size`, centre-cropped.
    """
    if size < 0:
        raise ValueError(f"size: {size} is not possible; allowed: pixels, or 0 to stream the files")
    names, train, test = _scan_folders(_location(root, path))
    splits = [Split(decode(files, size) if size else files, targets) for files, targets in (train, test)]
    return Dataset(splits[0], splits[1], len(names), IMAGENET_MEAN, IMAGENET_STD, names, auto_augment="imagenet")


def _scan_folders(folder: Path) -> tuple[tuple[str, ...], tuple[Files, Tensor], tuple[Files, Tensor]]:
    """Class names, and (files, labels) of the training and of the test folder."""
    test = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise FileNotFoundError(f"{folder} has not both train/ and val/ (or test/), each with one folder a class")
    names, train_files, train_targets = scan(folder / "train")
    _, test_files, test_targets = scan(test, names)
    return names, (train_files, train_targets), (test_files, test_targets)


def _imagefolder_digest(folder: Path) -> str:
    hashed = hashlib.sha256()
    _, *splits = _scan_folders(folder)
    for files, _ in splits:
        for file in files:
            hashed.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
    return hashed.hexdigest()
