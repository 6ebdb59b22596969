"""How many epochs of each method cost what the plain student's full schedule costs, by the steps that the probe timed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bench.data import Shape
from bench.plan.grid import Grid
from bench.records.cell import Cell, Teacher, digest
from bench.records.comparisons import Baseline
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.records.record import Cost
from bench.screen import Screen
from methods import METHODS

SHARED_BY = 10  # students that share a teacher, as in reports


def show(grid: Grid, folder: GridFolder, console: Screen) -> None:
    """Print a line for each method, for the key `equal_cost`."""
    found = folder.costs()[0]
    hardware = Counter(cost.machine.hardware for cost in found).most_common(1)
    known = {cost.key: cost for cost in found if cost.machine.hardware == hardware[0][0]}
    lines = list(_lines(grid, known)) if known else []
    if lines:
        lines.insert(0, f"epochs that cost what none's full schedule costs on {hardware[0][0]}, for the key equal_cost:")
    for line in lines or [f"equal cost: no steps of these methods are timed; `cost {grid.name}` does that without training"]:
        console.print(line, soft_wrap=True)


def _lines(grid: Grid, known: dict[str, Cost]) -> Iterator[str]:
    cells = grid.by_id
    for each in grid.comparisons:
        if each.against != Baseline.NONE:
            continue
        cell, plain = (next(iter(side.values())) for side in (each.method, each.baseline))
        ours, theirs = known.get(cell.cost_key), known.get(plain.cost_key)
        if ours is None or theirs is None:
            continue
        shape = grid.shapes[digest(cell.data)]
        budget, fixed, epoch = _full_s(plain, theirs, shape), _prepare_s(cell, ours, shape), _epoch_s(cell, ours, shape)
        counts: list[int | None] = [_within(budget - fixed, epoch)]
        if cell.teachers:
            teachers_s = sum(_teacher_s(teacher, cells, known, shape) for teacher in cell.teachers)
            shares = (teachers_s / SHARED_BY, teachers_s)
            counts += [None if math.isnan(share) else _within(budget - fixed - share, epoch) for share in shares]
        yield f"  {cell.label} on {describe(cell.student)}: {_worded(counts, cell)}"


def _teacher_s(teacher: Teacher, cells: Mapping[str, Cell], known: Mapping[str, Cost], shape: Shape) -> float:
    """Of its training; NaN where it is unknown."""
    taught_by = cells.get(teacher.cell or "")
    if taught_by and (timed := known.get(taught_by.cost_key)):
        return _full_s(taught_by, timed, shape)
    return math.nan if teacher.train_s is None else teacher.train_s


def _worded(counts: Sequence[int | None], cell: Cell) -> str:
    text = f"{counts[0]} of {cell.recipe.epochs}"
    if len(counts) == 1:
        return text
    shown = ["unknown" if count is None else f"{count}" if count else "none" for count in counts[1:]]
    whose = "its teacher's training" if cell.needs == "teacher" else "its copy's training"
    return f"{text} without {whose}, {shown[0]} with a tenth of it, {shown[1]} with all of it"


def _within(budget_s: float, epoch_s: float) -> int:
    """Whole epochs that a budget covers, to the nearest; 0 where it covers less than one."""
    return max(0, round(budget_s / epoch_s))


def _steps_an_epoch(cell: Cell, shape: Shape) -> int:
    return -(-round(shape.samples * (1 - cell.recipe.validation)) // cell.recipe.batch_size)


def _epoch_s(cell: Cell, cost: Cost, shape: Shape) -> float:
    return _steps_an_epoch(cell, shape) * cost.step.median_ms / 1000


def _prepare_s(cell: Cell, cost: Cost, shape: Shape) -> float:
    epochs = METHODS.build(cell.method).prepare_epochs
    return epochs * _steps_an_epoch(cell, shape) * cost.prepare_step.median_ms / 1000 if cost.prepare_step else 0.0


def _full_s(cell: Cell, cost: Cost, shape: Shape) -> float:
    """Seconds of a training with its full schedule."""
    return cell.recipe.epochs * _epoch_s(cell, cost, shape) + _prepare_s(cell, cost, shape)
