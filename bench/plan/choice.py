"""Values of hyper-parameters chosen on held-out images of the training set, with seeds of their own.

    choose: validation

Every method with several values is tried with each of them, teachers included, on the training set without a held-out part.
The value whose accuracy on that part is highest after the last epoch is then trained on all of the training set, with the
grid's own seeds: one row a method. Test images take no part in the choice. All trials are on the method's bill.

Everything is read from records, so a run that was stopped goes on where it was. No torch here.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bench.records.folders import GridFolder
from bench.records.trials import best, validation

if TYPE_CHECKING:
    from bench.plan.grid import Grid


class Value(NamedTuple):
    """One of the values among which is chosen."""

    label: str
    trials: tuple[str, ...]  # ids of the cells that try it
    cells: tuple[str, ...]  # of those that are trained where it is chosen


class Choice(NamedTuple):
    """The values of one method on one pair."""

    family: str
    pair: str
    values: tuple[Value, ...]


class Standing(NamedTuple):
    """Where a choice stands."""

    choice: Choice
    chosen: Value | None
    accuracies: dict[str, float]  # % on the held-out images by label; NaN where a trial failed
    waits: int  # trials that are not trained yet

    def __str__(self) -> str:
        name = f"{self.choice.family} on {self.choice.pair}"
        if self.waits:
            count = sum(len(value.trials) for value in self.choice.values)
            then = len(self.choice.values[0].cells)
            text = f"choice of {name}: {len(self.choice.values)} values, {count - self.waits} of {count} trials done"
            return f"{text}; then {then} training{'s' * (then != 1)} of the chosen value"
        if self.chosen is None:
            return f"choice of {name}: none, a trial of each value failed"
        others = [f"{label} {value:.2f}" for label, value in self.accuracies.items() if label != self.chosen.label]
        mean = self.accuracies[self.chosen.label]
        return f"choice of {name}: {self.chosen.label}, {mean:.2f} % on held-out images ({', '.join(others)})"


def standing(choice: Choice, folder: GridFolder) -> Standing:
    """Where a choice stands by the records of a folder."""
    found = {value.label: [validation(folder.cell(cell_id)) for cell_id in value.trials] for value in choice.values}
    waits = sum(each is None for results in found.values() for each in results)
    results = {label: [math.nan if each is None else each for each in values] for label, values in found.items()}
    means = {label: sum(values) / len(values) for label, values in results.items()}
    name = None if waits else best(results)
    return Standing(choice, next((value for value in choice.values if value.label == name), None), means, waits)


def settle(grid: Grid, folder: GridFolder) -> Grid:
    """The grid with the values that are chosen so far; unchanged where nothing is chosen. The others' cells are held back."""
    if not grid.declared.choices:
        return grid
    full = grid.unsettled or grid
    found = [standing(choice, folder) for choice in full.declared.choices]
    numbers = {cell: number for number, each in enumerate(found) if each.chosen for cell in each.chosen.cells}
    held = {cell for each in found for value in each.choice.values for cell in value.cells} - numbers.keys()
    students = full.declared.students - held
    wanted = students | {name for cell in full.cells if cell.id in students for name in cell.waits_for}
    declared = full.declared._replace(students=students, chosen=numbers)
    return replace(full, cells=[cell for cell in full.cells if cell.id in wanted], declared=declared, unsettled=full)


def explained(grid: Grid, folder: GridFolder) -> list[str]:
    """What is chosen among what, a line each, and whether all methods have as many values."""
    choices = grid.declared.choices
    lines = [str(standing(choice, folder)) for choice in choices]
    sizes = Counter(len(choice.values) for choice in choices)
    if len(sizes) > 1:
        budgets = ", ".join(dict.fromkeys(f"{choice.family} {len(choice.values)}" for choice in choices))
        lines.append(f"warning: budgets of values differ ({budgets}): more values favor a method")
    return lines
