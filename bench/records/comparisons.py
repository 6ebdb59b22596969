"""Which trainings of a grid are compared with which: every method with `none` and with `kd`. No torch.

Runs are paired by seed. Runs without a teacher are the same for all teachers of their student, so they are compared once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from bench.records.cell import Cell, digest
from bench.records.naming import is_default, method_family, pair_name, short_form


class Baseline(StrEnum):
    """What methods are compared with; the value is the family of the method that may be it."""

    NONE = "none"
    KD = "kd"


Runs = Mapping[int, Cell]  # one method's cells by seed


class Comparison(NamedTuple):
    """A method against a baseline, on one pair of networks, in one setting."""

    method: Runs
    baseline: Runs
    against: Baseline
    primary: bool  # declared so by the grid; all others are exploratory


class Family(NamedTuple):
    """How many comparisons share an error of 5 %."""

    primary: int
    exploratory: int


def comparisons(cells: Iterable[Cell], primary: Collection[str] = ()) -> list[Comparison]:
    """All comparisons of a grid.

    Args:
        cells: students; without the cells that are trained to teach only.
        primary: ids of cells whose comparisons are primary.
    """
    students: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        same = {name: value for name, value in cell.identity.items() if name in ("data", "student", "recipe", "precision")}
        students[digest(same)].append(cell)
    return [found for own in students.values() for found in _of_student(own, primary)]


def count(found: Sequence[Comparison]) -> Family:
    """How many are primary, and how many are not."""
    primary = sum(each.primary for each in found)
    return Family(primary, len(found) - primary)


def governed(found: Sequence[Comparison]) -> list[Comparison]:
    """Those on which sequential seeds are spent: the primary ones where any are declared, else all."""
    return [each for each in found if each.primary] or list(found)


def _of_student(cells: Sequence[Cell], primary: Collection[str]) -> list[Comparison]:
    """The comparisons of one student in one setting."""
    free = _by_method(cell for cell in cells if cell.needs != "teacher")
    taught: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.needs == "teacher" and cell.teacher:
            taught[digest([[each.model, each.weights_sha256] for each in cell.teachers])].append(cell)
    plain = _standing_for(Baseline.NONE, free)
    found = [_pair(runs, plain, Baseline.NONE, primary) for runs in free if plain and runs is not plain]
    for own in [_by_method(group) for group in taught.values()] or [[]]:
        kd = _standing_for(Baseline.KD, own)
        found += [_pair(runs, plain, Baseline.NONE, primary) for runs in own if plain]
        found += [
            _pair(runs, kd, Baseline.KD, primary) for runs in [*free, *own] if kd and runs is not kd and runs is not plain
        ]
    return found


def _pair(method: Runs, baseline: Runs, against: Baseline, primary: Collection[str]) -> Comparison:
    return Comparison(method, baseline, against, any(cell.id in primary for cell in method.values()))


def _by_method(cells: Iterable[Cell]) -> list[dict[int, Cell]]:
    found: dict[str, dict[int, Cell]] = defaultdict(dict)
    for cell in cells:
        found[cell.cost_key][cell.seed] = cell
    return list(found.values())


def _standing_for(baseline: Baseline, methods: Sequence[Runs]) -> Runs | None:
    """The runs that are this baseline: those of the only method of its family, else of the only one at today's defaults."""
    found = [runs for runs in methods if method_family(next(iter(runs.values())).method) == baseline]
    if len(found) > 1:
        found = [runs for runs in found if _at_defaults(next(iter(runs.values())))]
    return found[0] if len(found) == 1 else None


def _at_defaults(cell: Cell) -> bool:
    return is_default(short_form(cell.method, pair_name(cell.teacher.model if cell.teacher else None, cell.student)))
