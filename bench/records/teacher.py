"""How good a teacher is that was not trained here, measured once before anything learns from it. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field

from bench.records.cell import Cell, Teacher, digest
from bench.records.frozen import Frozen
from bench.records.naming import describe
from bench.records.record import SCHEMA


class TeacherAccuracy(Frozen):
    """What a teacher from a file, or with published weights, gets right of a test set, in the precision in which it teaches."""

    schema_version: int = SCHEMA
    key: str  # see `key_of`
    teacher: str  # 'resnet32x4', as people read it
    weights_sha256: str | None  # None for weights that a library publishes
    data: dict[str, Any]  # of a cell that learns from it
    classes: int = Field(ge=1)
    images: int = Field(ge=1)
    top1: float = Field(ge=0, le=100)
    top5: float = Field(ge=0, le=100)
    measured: str  # when, ISO 8601 in UTC

    @property
    def near_chance(self) -> bool:
        """Whether guessing would do about as well: within half of what separates chance from it, or three standard errors."""
        chance = 1 / self.classes
        margin = max(chance * (1 - chance) / 2, 3 * math.sqrt(chance * (1 - chance) / self.images))
        return self.top1 / 100 <= chance + margin

    @property
    def warning(self) -> str:
        """What to look into where it is near chance; else empty."""
        if not self.near_chance:
            return ""
        return (
            f"teacher {self.teacher} has an accuracy of {self.top1:.2f} % on {self.images} test images, and guessing has "
            f"{100 / self.classes:.2f} %: check its `normalize`, its `image_size` and the order of its classes"
        )


def key_of(cell: Cell) -> str | None:
    """Of the measurement that a cell's teacher needs; None where it has none, or one that another cell trained.

    Of several teachers each is measured alone: see `Cell.by_teacher`.

    Equal where weights, what the network sees, test images and arithmetic are.
    """
    if cell.teacher is None or cell.teacher.cell or cell.teacher.others:
        return None
    data = {name: value for name, value in cell.identity["data"].items() if name != "train_images"}
    parts = {"teacher": cell.teacher.identity, "model": cell.teacher.model, "data": data}
    return digest(parts | {"image_size": cell.recipe.image_size, "precision": cell.precision})[:16]


def accuracy_lines(cells: Iterable[Cell], known: Callable[[str], TeacherAccuracy | None]) -> list[str]:
    """How good the teachers of these cells are that were not trained here: a line each, a warning where one is near chance."""
    found: dict[str, str] = {}
    for cell in (alone for each in cells for alone in each.by_teacher()):
        key = key_of(cell)
        if key is None or key in found:
            continue
        accuracy = known(key)
        if accuracy is None:
            found[key] = f"teacher {source_of(cell)}: accuracy not measured; `run` measures it"
        elif accuracy.near_chance:
            found[key] = f"warning: {accuracy.warning}"
        else:
            found[key] = f"teacher {accuracy.teacher}: accuracy {accuracy.top1:.2f} % on {accuracy.images} test images"
    return list(found.values())


def source_of(cell: Cell) -> str:
    """'resnet32x4 (weights 1a2b3c4d)', of several joined by ' + '; '–' without a teacher."""
    return " + ".join(map(_source, cell.teachers)) or "–"


def _source(teacher: Teacher) -> str:
    part = f", {teacher.part}" if teacher.part else ""
    return describe(teacher.model) + (f" (weights {teacher.weights_sha256[:8]}{part})" if teacher.weights_sha256 else "")
