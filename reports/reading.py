"""What a grid's folder holds for a report: records that are fit for comparison, curves, and what cannot be used."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.records.folders import GridFolder
from bench.records.problems import Problem, reason
from bench.records.record import Record

KEPT_OUT = "kept out of every table and verdict"
NOT_A_NUMBER = "an accuracy is not a number"


def read(folder: GridFolder) -> tuple[list[Record], list[Problem]]:
    """The grid's records that are fit for comparison, teachers included, and what is wrong with the others.

    Raises:
        UserError: the grid has no manifest.
    """
    records, problems = folder.records()
    wanted = {cell["id"] for cell in folder.manifest()["cells"]}
    wanted |= {name for record in records if record.id in wanted for name in record.cell.waits_for}
    stray = [
        Problem(f"{folder.name}/{record.id}", "no longer part of the grid; left out")
        for record in records
        if record.id not in wanted
    ]
    good, unsound = sound(record for record in records if record.id in wanted)
    return good, [*problems, *unsound, *stray]


def sound(records: Iterable[Record]) -> tuple[list[Record], list[Problem]]:
    """The records fit for comparison, and what is wrong with the others: not a number, or one cell with two results."""
    good: dict[str, Record] = {}
    problems, twice = [], set()
    for record in records:
        values = [record.accuracies.last.top1, record.accuracies.last.top5, record.accuracies.best_test.top1]
        if not all(math.isfinite(value) for value in values):
            problems.append(Problem(record.id, f"{NOT_A_NUMBER}; {KEPT_OUT}"))
        elif record.id in good and good[record.id].accuracies != record.accuracies:
            twice.add(record.id)
        else:
            good[record.id] = record
    problems += [Problem(name, f"recorded more than once, with different results; {KEPT_OUT}") for name in sorted(twice)]
    return [record for record in good.values() if record.id not in twice], problems


class Curve(NamedTuple):
    """What one training measured after each epoch, from the first."""

    top1: np.ndarray  # %, on the test set
    validation: np.ndarray  # %, on the validation split; NaN without one
    gradients: Mapping[str, np.ndarray] = MappingProxyType({})  # columns of `bench.engine.gradients`, where it measured

    @classmethod
    def parse(cls, text: str) -> Curve:
        """From the CSV beside a record.

        Raises:
            ValueError: a column is missing, a value is no number, or the epochs are not 1, 2, 3, ...
        """
        head, *lines = text.splitlines() or [""]
        names, rows = head.split(","), [line.split(",") for line in lines]
        if not {"epoch", "test_top1"} <= set(names) or any(len(row) != len(names) for row in rows):
            raise ValueError("a column is missing, or a row is cut short")
        if [row[names.index("epoch")] for row in rows] != [str(epoch + 1) for epoch in range(len(rows))] or not rows:
            raise ValueError("its epochs are not 1, 2, 3, ...")

        def column(name: str) -> np.ndarray:
            at = names.index(name) if name in names else None
            return np.array([float(row[at] or "nan") if at is not None else math.nan for row in rows])

        gradients = {name: column(name) for name in names if re.fullmatch("gradient(_.+)?|cosine_.+", name)}
        return cls(column("test_top1"), column("val_top1"), gradients)


class ByImage(NamedTuple):
    """Which test images one training classified correctly, as bits: reports hold thousands of these."""

    bits: bytes
    images: int

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,), in the order of the test set."""
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.images).astype(bool)


def read_by_image(folder: GridFolder, records: Iterable[Record]) -> tuple[dict[str, ByImage], list[Problem]]:
    """Which test images every record has right, by id, where it keeps that; and the files that cannot be used."""
    found, problems = {}, []
    for record in records:
        try:
            correct = folder.cell(record.id).correct(record)
        except (ValueError, OSError) as error:
            problems.append(
                Problem(f"{folder.name}/{record.id}/correct.bin", f"{reason(error)}; left out of the comparison by image")
            )
            continue
        if correct is not None:
            found[record.id] = ByImage(np.packbits(correct).tobytes(), len(correct))
    return found, problems


def read_curves(folder: GridFolder, records: Iterable[Record]) -> tuple[dict[str, Curve], list[Problem]]:
    """The curve of every record, by id; and the files that cannot be used."""
    curves, problems = {}, []
    for record in records:
        try:
            curves[record.id] = Curve.parse(folder.cell(record.id).curves(record))
        except (ValueError, OSError) as error:
            problems.append(Problem(f"{folder.name}/{record.id}/curves.csv", f"{reason(error)}; left out of the curves"))
    return curves, problems
