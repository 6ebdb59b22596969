"""Measures what a teacher that was not trained here gets right, through the path by which it teaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from bench.data import Dataset, evaluation_batches, load
from bench.engine.assemble import Assembly, load_teacher, place
from bench.engine.device import resolve_device
from bench.engine.evaluation import evaluate
from bench.engine.trainee import Teacher
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.records.teacher import TeacherAccuracy, key_of, source_of
from methods.base import Output


class _AsNetwork(nn.Module):
    """A teacher as what is evaluated: folded, and in the precision in which it answers."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, image: Tensor) -> Output:
        return self.teacher(image)


def measure_missing(cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
    """Measure the teachers of these cells that were not measured before, and keep what is found in the results folder.

    Raises:
        UserError: a file is not the one that was planned with.
    """
    for cell in (alone for each in cells for alone in each.by_teacher()):
        if _is_missing(cell, folder):
            device, dataset = resolve_device(options.device), load(cell.data, options.data_root)
            sample, _ = next(_batches(cell, dataset, device, count=2))
            teacher = Teacher(place(load_teacher(cell, folder, dataset), device), sample, cell.precision)
            _measure(cell, teacher, dataset, device, folder)


def measure_assembled(assembly: Assembly, folder: GridFolder) -> None:
    """The same for the teachers of cells that are about to be trained."""
    for cell in assembly.cells:
        for alone, teacher in zip(cell.by_teacher(), assembly.trainees[cell.id].teachers, strict=True):
            if _is_missing(alone, folder):
                _measure(alone, teacher, assembly.dataset, assembly.device, folder)


def _is_missing(cell: Cell, folder: GridFolder) -> bool:
    key = key_of(cell)
    return key is not None and folder.results.teacher_accuracy(key) is None


def _batches(cell: Cell, dataset: Dataset, device: torch.device, count: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    size, layout = cell.recipe.image_size, torch.channels_last
    return evaluation_batches(dataset.test, dataset, device, batch_size=count, memory_format=layout, image_size=size)


def _measure(cell: Cell, teacher: Teacher, dataset: Dataset, device: torch.device, folder: GridFolder) -> None:
    key = key_of(cell)
    assert key is not None
    assert cell.teacher is not None
    found = evaluate(_AsNetwork(teacher), _batches(cell, dataset, device), cell.precision, device)
    teacher.forget()
    accuracy = TeacherAccuracy(
        key=key,
        teacher=source_of(cell),
        weights_sha256=cell.teacher.weights_sha256,
        data=cell.identity["data"],
        classes=dataset.classes,
        images=len(dataset.test.targets),
        top1=found.top1,
        top5=found.top5,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.results.write_teacher_accuracy(accuracy)
