"""Image files whose labels stand in a CSV file."""

from __future__ import annotations

import csv as reader
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from bench.data.dataset import Dataset, Split
from bench.data.files import Files
from bench.data.sets import (
    DATASETS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    image_size,
    location,
    number,
    with_test,
)

MOST_BYTES = 2**30  # of a CSV file, which is read into memory; labels of 20 million images fit
LISTED = 10  # parts that an error names
TEST_PARTS = ("test", "val", "valid", "validation")


class Row(NamedTuple):
    file: str
    label: str
    part: str  # lower case; empty where the table names none
    place: str  # 'labels.csv, line 7'


@DATASETS.register_module()
def csv(
    root: str | None = None,
    path: str | None = None,
    labels: str = "labels.csv",
    test_labels: str = "",
    file: str = "file",
    label: str = "label",
    part: str = "part",
    suffix: str = "",
    size: int = 0,
    test_share: float = 0.0,
) -> Dataset:
    """Image files in a folder, with their labels in a CSV file there. Gray ones become RGB.

    The CSV file has a header and one row for each image; columns are separated by a comma, semicolon or tab. Labels are numbers
    or texts; classes are the labels of the training images in their order. Images are read as those of `imagefolder`.

    Args:
        labels: name of the CSV file in the folder `path`; it names the images from this folder on.
        test_labels: that of the test images, if they stand in a file of their own.
        file: the column with the names of the image files.
        label: the column with their labels.
        part: the column that divides them, if there is one: 'train', and 'test' (if there is none: 'val', 'valid' or
            'validation'). Rows of other parts are left out.
        suffix: what to add to the names, such as '.jpg'.
        size: as of imagefolder.
        test_share: where no test images are named: the share, in (0, 1), of all images to test on. Fixed and stratified.

    Raises:
        FileNotFoundError, ValueError: a file or a column is missing, or a row is malformed.
    """
    folder = location(root, path)
    columns = (file, label, part)
    rows = list(_rows(folder, labels, columns))
    tested = list(_rows(folder, test_labels, columns)) if test_labels else None
    for table, read in ((labels, rows), (test_labels, tested)):
        if read == []:
            raise ValueError(f"{folder / table} has no row below its header")
    if tested is None and any(row.part for row in rows):
        rows, tested = _divided(rows, folder / labels, part)
    _check_once([*rows, *(tested or [])])
    names, *targets = number([row.label for row in rows], tested and [row.label for row in tested])
    splits = [
        Split(_files(folder, found, suffix), labeled)
        for found, labeled in zip((rows, tested), targets, strict=True)
        if found is not None and labeled is not None
    ]
    lacks = f"{folder / labels} has no column '{part}', and test_labels names no other file"
    train, test = with_test(splits[0], splits[1] if tested is not None else None, test_share, lacks)
    both = IMAGENET_MEAN, IMAGENET_STD
    return Dataset(train, test, len(names), *both, names, "imagenet", image_size(size), folder)


def _rows(folder: Path, name: str, columns: tuple[str, str, str]) -> Iterator[Row]:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; csv needs the table of labels there, named by data.labels")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; allowed: at most {MOST_BYTES}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = opened.readline()
            delimiter = max(",;\t", key=header.count)
            names = [name.strip() for name in next(reader.reader([header], delimiter=delimiter), [])]
            if twice := [column for column in columns if names.count(column) > 1]:
                raise ValueError(f"{file}: the column '{twice[0]}' stands twice in its header")
            if missing := [column for column in columns[:2] if column not in names]:
                raise ValueError(f"{file} has no column '{missing[0]}'; it has: {', '.join(names) or 'nothing'}")
            for number, values in enumerate(reader.reader(opened, delimiter=delimiter), start=2):
                if values:
                    yield _row(dict(zip(names, values, strict=False)), columns, f"{file}, line {number}")
    except (UnicodeDecodeError, reader.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8 ({error})") from None


def _row(values: dict[str, str], columns: tuple[str, str, str], place: str) -> Row:
    file, label, part = (values.get(column, "").strip() for column in columns)
    for column, value in zip(columns, (file, label), strict=False):
        if not value:
            raise ValueError(f"{place}: '{column}' is empty")
    if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
        raise ValueError(f"{place}: '{file}' does not lie in the folder of the table")
    return Row(file, label, part.lower(), place)


def _check_once(rows: list[Row]) -> None:
    """
    Raises:
        ValueError: an image has two labels.
    """
    known: dict[str, Row] = {}
    for row in rows:
        former = known.setdefault(row.file, row)
        if former.label != row.label:
            raise ValueError(f"{row.place}: '{row.file}' is {row.label} here and {former.label} in {former.place}")


def _divided(rows: list[Row], table: Path, column: str) -> tuple[list[Row], list[Row]]:
    """Training and test rows by their part."""
    found = {row.part for row in rows}
    test = next((part for part in TEST_PARTS if part in found), None)
    if "train" not in found or test is None:
        listed = ", ".join(part or "an empty field" for part in sorted(found)[:LISTED])
        raise ValueError(f"{table}: column '{column}' has {listed}; needed: train, and one of {', '.join(TEST_PARTS)}")
    return [row for row in rows if row.part == "train"], [row for row in rows if row.part == test]


def _files(folder: Path, rows: list[Row], suffix: str) -> Files:
    paths = [folder / (row.file + suffix) for row in rows]
    for row, path in zip(rows, paths, strict=True):
        if not path.is_file():
            raise FileNotFoundError(f"{row.place}: {path} is not a file")
    return Files([str(path) for path in paths])
