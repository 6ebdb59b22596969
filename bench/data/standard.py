"""The standard data sets, each with the shape of its data, by which a grid is planned before the data are there."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from bench.data.sets import Dataset, Shape, hold_out, split_of, standard_set, statistics
from bench.records.pacing import PATIENCE_S
from bench.texts import one_line
from bench.user_files import expanded

CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # the constants of the field; off by up to 0.00015
FASHION_MNIST = (0.2860,), (0.3530,)
SVHN = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
BY_HAND = ("FER2013",)  # sets that torchvision reads and does not download
DEFAULT_ROOT = "data"  # in the current folder


@standard_set("digits", Shape(channels=1, height=8, width=8, classes=10, samples=1000), 797)
def digits(root: str | None = None) -> Dataset:
    """Scikit-learn's handwritten digits, 8x8, part of that package: 1,000 to train on, 797 to test, stratified, fixed."""
    package = find_spec("sklearn")  # read as its `load_digits` does; importing that takes 1.3 s
    if package is None or not package.origin:
        raise FileNotFoundError("digits come with scikit-learn, which is not installed: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    train, test = hold_out(split_of(pixels, table[:, 64]), 797 / 1797)
    mean, std = statistics(train.images)
    return Dataset(train, test, 10, mean, std, tuple("0123456789"))


@standard_set("cifar10", Shape(channels=3, height=32, width=32, classes=10, samples=50_000), 10_000, CIFAR10)
def cifar10(root: str | None = None) -> Dataset:
    """CIFAR-10, 32x32, 50,000 + 10,000 images."""
    train, test = from_torchvision("CIFAR10", root, "cifar-10-batches-py", [{"train": True}, {"train": False}])
    splits = [split_of(part.data, part.targets) for part in (train, test)]
    return Dataset(splits[0], splits[1], 10, *CIFAR10, tuple(train.classes))


@standard_set("cifar100", Shape(channels=3, height=32, width=32, classes=100, samples=50_000), 10_000, CIFAR100)
def cifar100(root: str | None = None) -> Dataset:
    """CIFAR-100, 32x32, 50,000 + 10,000 images."""
    train, test = from_torchvision("CIFAR100", root, "cifar-100-python", [{"train": True}, {"train": False}])
    splits = [split_of(part.data, part.targets) for part in (train, test)]
    return Dataset(splits[0], splits[1], 100, *CIFAR100, tuple(train.classes))


@standard_set("fashion_mnist", Shape(channels=1, height=28, width=28, classes=10, samples=60_000), 10_000, FASHION_MNIST)
def fashion_mnist(root: str | None = None) -> Dataset:
    """Fashion-MNIST, 28x28 grayscale, 60,000 + 10,000 images."""
    train, test = from_torchvision("FashionMNIST", root, "FashionMNIST/raw", [{"train": True}, {"train": False}])
    splits = [split_of(part.data, part.targets) for part in (train, test)]
    return Dataset(splits[0], splits[1], 10, *FASHION_MNIST, tuple(train.classes))


@standard_set("svhn", Shape(channels=3, height=32, width=32, classes=10, samples=73_257), 26_032, SVHN)
def svhn(root: str | None = None) -> Dataset:
    """Street View House Numbers, cropped, 32x32, 73,257 + 26,032 images; without the extra ones."""
    train, test = from_torchvision("SVHN", root, "train_32x32.mat and test_32x32.mat", [{"split": "train"}, {"split": "test"}])
    splits = [split_of(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
    return Dataset(splits[0], splits[1], 10, *SVHN, tuple("0123456789"), auto_augment="svhn")


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock of a download; where another process has held it for a while, the user reads of it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=PATIENCE_S)
    except Timeout:
        print(one_line(f"waiting for another process that downloads {name} (it holds {lock})"), file=sys.stderr, flush=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def from_torchvision(name: str, root: str | None, place: str, parts: list[dict[str, Any]]) -> list[Any]:
    """Each part of torchvision's data set; downloaded where it is missing, by one process at a time.

    Args:
        name: torchvision's class.
        place: where in `root` the files belong, for the error.
        parts: what selects each part in the class's constructor.

    Raises:
        FileNotFoundError: the files are missing or damaged, and the download failed.
        ValueError: a part that the class does not have.
    """
    from torchvision import datasets

    folder = expanded(root or DEFAULT_ROOT).resolve()
    builder = getattr(datasets, name)
    paths = {"loader": str} if "loader" in inspect.signature(builder.__init__).parameters else {}  # images stay on disk

    def read(download: bool) -> list[Any]:
        switch = {} if name in BY_HAND else {"download": download}
        return [builder(folder, **part, **switch, **paths) for part in parts]

    try:
        return read(download=False)
    except (RuntimeError, OSError):  # torchvision's answer to files that are missing or damaged
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{name}.lock", name):
            return read(download=True)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        if name in BY_HAND:
            raise FileNotFoundError(f"{name} is not in {folder}, and torchvision cannot download it ({error})") from error
        raise FileNotFoundError(
            f"{name} is not in {folder}: {place} is missing or damaged there, and the download failed ({error}). "
            f"Name the folder that holds it with --data-root, or let torchvision download it where there is a network: "
            f"python -c \"from torchvision.datasets import {name}; {name}('.', download=True)\""
        ) from error
