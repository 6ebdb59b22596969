"""Image sets of Hugging Face: on the hub, or on disk as Parquet files. Needs the optional package datasets."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.data.dataset import Dataset, Split
from bench.data.files import Files, read
from bench.data.sets import (
    DATASETS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_size,
    location,
    number,
    with_test,
)
from bench.data.standard import DEFAULT_ROOT
from bench.user_files import expanded

TEST_PARTS = ("test", "validation", "valid", "val")


class Rows(Files):
    """Images that lie encoded in the rows of a table on disk.

    Args:
        table: a `datasets.Dataset` with one column, of images that are not decoded.
        positions: rows (N,) of it.
    """

    def __init__(self, table: Any, positions: np.ndarray) -> None:
        self.table, self.positions = table, positions
        [self.column] = table.column_names

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, positions: Tensor) -> Rows:
        return Rows(self.table, self.positions[positions.numpy()])

    def shared_with(self, other: Files) -> int:
        """None: rows have no names to be known by."""
        return 0

    def path(self, position: int) -> Path:
        """A name for errors; no file."""
        return Path(f"{self.column}[{self.positions[position]}]")

    def digest(self, position: int) -> bytes:
        return hashlib.sha256(self._stored(position)).digest()

    def open(self, position: int) -> Image.Image:
        return read(BytesIO(self._stored(position)), f"row {self.positions[position]} of column '{self.column}'")

    def _stored(self, position: int) -> bytes:
        found = self.table[int(self.positions[position])][self.column]
        if found is None:
            raise ValueError(f"row {self.positions[position]} of column '{self.column}' is empty")
        return found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()


@DATASETS.register_module()
def huggingface(
    root: str | None = None,
    path: str | None = None,
    name: str = "",
    config: str = "",
    train: str = "train",
    test: str = "",
    image: str = "",
    label: str = "",
    size: int = 0,
    test_share: float = 0.0,
) -> Dataset:
    """A set of Hugging Face: by its `name` on the hub, 'uoft-cs/cifar10', or from a folder on disk. Gray ones become RGB.

    What the hub has is kept in the data root. A folder holds Parquet files, or what `save_to_disk` wrote. No code of a set is
    executed. Images are read as those of `imagefolder`: they stream unless `size` is given.

    Args:
        path: the folder on disk; `name` is then a name for reports.
        config: which of a set's variants, where there are several.
        train: the part to train on.
        test: the part to test on; default: test, else validation.
        image: the column of images; default: the only one.
        label: the column of labels; default: the only one with class names.
        size: as of imagefolder.
        test_share: where there is no part to test on: the share, in (0, 1), of all images that become the test images.

    Raises:
        ImportError: the package datasets is not installed.
        FileNotFoundError, ValueError: the set, a part or a column is missing.
    """
    what = str(location(root, path)) if path else name
    if not what:
        raise ValueError("huggingface needs `name`, of a set on the hub, or `path`, of a folder on disk")
    parts = _load(what, bool(path), config, root)
    test = test or next((each for each in TEST_PARTS if each in parts and each != train), "")
    for part in filter(None, (train, test)):
        if part not in parts:
            raise ValueError(f"{what} has no part '{part}'; it has: {', '.join(parts)}")
    tables = [parts[part] for part in filter(None, (train, test))]
    columns = _image_column(tables[0], image, what), _label_column(tables[0], label, what)
    names, splits = _splits(tables, columns)
    tested = splits[1] if test else None
    lacks = f"{what} has no part to test on among {', '.join(parts)}"
    divided = with_test(splits[0], tested, test_share, lacks)
    both = IMAGENET_MEAN, IMAGENET_STD
    return Dataset(*divided, len(names), *both, names, "imagenet", image_size(size))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        message = "data 'huggingface' need the package datasets: pip install 'distillation-bench[huggingface]'"
        raise ImportError(message) from error
    return datasets


def _load(what: str, on_disk: bool, config: str, root: str | None) -> dict[str, Any]:
    """The parts by name, each a table."""
    library = _library()
    if on_disk and not Path(what).is_dir():
        raise FileNotFoundError(f"{what} is not a folder; huggingface needs one with Parquet files")
    saved = on_disk and any((Path(what) / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = library.load_from_disk(what)
        elif on_disk:
            found = library.load_dataset(what, config or None)
        else:
            cache = expanded(root or DEFAULT_ROOT) / "huggingface"
            found = library.load_dataset(what, config or None, cache_dir=str(cache))
    except Exception as error:  # whatever its readers and the network raise
        raise FileNotFoundError(f"{what} cannot be read as a set of Hugging Face ({str(error).strip()})") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _image_column(table: Any, asked: str, what: str) -> str:
    kinds = {name: type(kind).__name__ for name, kind in table.features.items()}
    stored = [name for name, kind in table.features.items() if isinstance(kind, dict) and {"bytes", "path"} == set(kind)]
    return _column(asked, [name for name, kind in kinds.items() if kind == "Image"] or stored, kinds, "image", what)


def _label_column(table: Any, asked: str, what: str) -> str:
    kinds = {name: type(kind).__name__ for name, kind in table.features.items()}
    named = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    return _column(asked, named or [name for name in ("label", "labels") if name in kinds], kinds, "label", what)


def _column(asked: str, found: list[str], kinds: dict[str, str], key: str, what: str) -> str:
    if asked and asked not in kinds:
        raise ValueError(f"{what} has no column '{asked}'; it has: {', '.join(kinds)}")
    if not asked and len(found) != 1:
        raise ValueError(f"{what}: name the column by data.{key}; it has: {', '.join(kinds)}")
    return asked or found[0]


def _splits(tables: list[Any], columns: tuple[str, str]) -> tuple[tuple[str, ...], list[Split]]:
    library = _library()
    image, label = columns
    labels = [list(table[label]) for table in tables]
    if any(each is None for part in labels for each in part):
        raise ValueError(f"column '{label}' has rows without a label")
    kind = tables[0].features[label]
    if isinstance(kind, library.ClassLabel):
        names = tuple(map(str, kind.names))
        targets = [torch.tensor(part) for part in labels]
    else:
        names, *numbered = number(labels[0], labels[1] if len(labels) > 1 else None)
        targets = [part for part in numbered if part is not None]
    encoded = [table.select_columns([image]).cast_column(image, library.Image(decode=False)) for table in tables]
    rows = [Rows(table, np.arange(len(table))) for table in encoded]
    return names, [Split(images, part) for images, part in zip(rows, targets, strict=True)]
