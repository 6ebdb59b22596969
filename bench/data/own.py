"""Formats for the user's own data: arrays in one .npz file, and folders of image files. Their digest is part of a cell's id."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from bench.data import digests, memory
from bench.data.checks import check_count, looks_channels_first
from bench.data.dataset import Dataset, Split
from bench.data.files import scan
from bench.data.sets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_size,
    location,
    own_format,
    split_of,
    statistics,
    with_test,
)

LONGEST_NAME = 1000  # characters of a class's
MOST_NAMES_BYTES = 2**26  # of all names of classes; 4 a character
LISTED = 10  # keys that an error names
NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def _npz_digest(file: Path) -> str:
    arrays = _open_npz(file)
    hashed = hashlib.sha256()
    for key in NPZ_KEYS:
        hashed.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        hashed.update(np.ascontiguousarray(arrays[key]).data)
    return hashed.hexdigest()


@own_format("npz", _npz_digest)
def npz(root: str | None = None, path: str | None = None) -> Dataset:
    """Arrays of your own in one .npz file.

    Keys: train_images, test_images, (N, H, W, C) or (N, H, W) uint8; train_labels, test_labels, (N,) integers from 0; and
    optionally class_names. Mean and standard deviation are those of the training images.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that is damaged, lacks a key, or has arrays of another kind.
    """
    arrays = _read_npz(location(root, path))
    train = split_of(arrays["train_images"], arrays["train_labels"])
    test = split_of(arrays["test_images"], arrays["test_labels"])
    mean, std = statistics(train.images)
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
            floats = "; images in [0, 1] times 255, rounded" if images.dtype.kind == "f" else ""
            raise refuse(f"{part}_images", f"uint8 of shape (N, H, W, C) or (N, H, W), not empty{floats}")
        if images.ndim == 4 and looks_channels_first(images.shape):
            raise refuse(f"{part}_images", "(N, H, W, C); this looks like (N, C, H, W): use images.transpose(0, 2, 3, 1)")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise refuse(f"{part}_labels", f"integers of shape ({len(images)},), one for each image")
        if labels.min() < 0:
            raise ValueError(f"{file}: '{part}_labels' has the label {labels.min()}; allowed: 0 to classes - 1")
    if arrays["test_images"].shape[1:] != arrays["train_images"].shape[1:]:
        raise refuse("test_images", f"(N, {', '.join(map(str, arrays['train_images'].shape[1:]))}), as in 'train_images'")
    classes = 1 + int(max(arrays["train_labels"].max(), arrays["test_labels"].max()))
    try:
        check_count(max(classes, len(arrays.get("class_names", np.empty(0)).ravel())))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = arrays.setdefault("class_names", np.array([str(label) for label in range(classes)]))
    if names.dtype.kind == "S":
        try:
            names = arrays["class_names"] = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: 'class_names' are no UTF-8 ({error})") from None
    if names.dtype.kind == "U" and names.dtype.itemsize > 4 * LONGEST_NAME:
        raise refuse("class_names", f"texts of at most {LONGEST_NAME} characters")
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < classes:
        raise refuse("class_names", f"at least {classes} texts, since the largest label is {classes - 1}")
    return arrays


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; npz needs the path of an .npz file (numpy.savez writes one)")
    if not is_zipfile(file):
        raise ValueError(f"{file} is no .npz file, which is a zip archive of arrays, or is damaged; numpy.savez writes one")
    try:
        with ZipFile(file) as members:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in members.infolist()}
    except (BadZipFile, OSError):
        sizes = {NPZ_KEYS[0]: file.stat().st_size}
    if sizes.get("class_names", 0) > MOST_NAMES_BYTES:
        raise ValueError(f"{file}: 'class_names' take more than {MOST_NAMES_BYTES // 2**20} MiB, the most that are read")
    needed = sum(size for name, size in sizes.items() if name in NPZ_KEYS)
    memory.require(needed, f"the arrays in {file}", "store fewer or smaller images, or image files in class folders")
    try:
        with np.load(file, allow_pickle=False) as archive:
            present = archive.files
            arrays = {key: archive[key] for key in (*NPZ_KEYS, "class_names") if key in present}
    except (BadZipFile, EOFError, TypeError, OSError, ValueError, MemoryError) as error:  # TypeError: a single array
        raise ValueError(f"{file} is not an .npz file of plain arrays, or is damaged ({error})") from error
    if missing := [key for key in NPZ_KEYS if key not in arrays]:
        holds = ", ".join(present[:LISTED]) + (f" and {len(present) - LISTED} more" if len(present) > LISTED else "")
        raise ValueError(f"{file} has no {', '.join(missing)}; it holds: {holds or 'nothing'}")
    return arrays


def _imagefolder_digest(folder: Path) -> str:
    return digests.of_files(folder, [file for part in _parts(folder) for file in scan(part)[1]])


@own_format("imagefolder", _imagefolder_digest)
def imagefolder(root: str | None = None, path: str | None = None, size: int = 0, test_share: float = 0.0) -> Dataset:
    """Image files in class folders: train/CLASS/*, and val/CLASS/* (or test/CLASS/*). Gray ones become RGB.

    Folders within a class's folder belong to the class; names that begin with a dot are left out. Of 16-bit files the upper 8
    bits count. Files of 32-bit integers or floating-point numbers are refused.

    Args:
        size: 0 streams the files from disk, batch by batch, for sets that are too large for memory; the recipe's crop must
            then be 'resized'. Otherwise all images are held in memory, their shorter side resized to `size`, center-cropped.
        test_share: where there are no test images: the share, in (0, 1), of those in train/CLASS/*, or in CLASS/*, that become
            the test images. Fixed and stratified.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or empty, or a test class has no training images.
    """
    folder = location(root, path)
    parts = _parts(folder)
    names, files, targets = scan(parts[0])
    test = Split(*scan(parts[1], names)[1:]) if len(parts) > 1 else None
    lacks = f"{folder} lacks train/ or val/ (or test/), each with one folder a class"
    train, test = with_test(Split(files, targets), test, test_share, lacks)
    return Dataset(train, test, len(names), IMAGENET_MEAN, IMAGENET_STD, names, auto_augment="imagenet", size=image_size(size))


imagefolder.added_later = ("test_share",)  # type: ignore[attr-defined]


def _parts(folder: Path) -> list[Path]:
    """The folders whose folders are classes: of the training and of the test images; one where no test images are apart."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} lacks train/ or val/ (or test/): it is no folder")
    if not (folder / "train").is_dir():
        return [folder]
    test = [folder / name for name in ("val", "test") if (folder / name).is_dir()]
    return [folder / "train", *test[:1]]
