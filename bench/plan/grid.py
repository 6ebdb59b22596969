"""A grid: its cells, what is compared in it, and what its manifest holds. `bench.plan.expand` makes it from a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.data import Look, Shape
from bench.engine.code import own_code
from bench.errors import UserError, unknown
from bench.plan.declared import Declared
from bench.plan.grid_file import SequentialSeeds
from bench.plan.specs import signatures
from bench.records.board import facts
from bench.records.cell import Cell, digest
from bench.records.comparisons import Comparison, comparisons, count, governed
from bench.records.naming import data_name, method_family, nested
from bench.stats import MARGIN, SeedRule
from methods import METHODS


@dataclass(frozen=True)
class Skip:
    """A method on a pair that cannot be trained, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Grid:
    """The cells of a grid."""

    name: str
    about: str
    cells: list[Cell]  # teachers first
    skipped: list[Skip] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)  # the file's contents after --set
    looks: dict[str, Look] = field(default_factory=dict)  # what was found of the data, by the digest of a cell's `data`
    declared: Declared = field(default_factory=Declared)
    file: Path | None = None  # where the grid was read from
    seeds: SequentialSeeds | None = None  # where seeds are spent one after the other
    until: float = MARGIN  # points within which two accuracies count as the same
    every: list[Cell] = field(default_factory=list)  # with those of further seeds, for which no result asks so far

    unsettled: Grid | None = None  # with the cells of all values of a choice

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every method with `none` and with `kd`; the primary ones are marked."""
        ordinary = self.declared.students - self.declared.equal_cost.keys() - self.declared.trials.keys()
        students = (cell for cell in self.every or self.cells if cell.id in ordinary)
        return comparisons(students, self.declared.primary)

    @cached_property
    def rule(self) -> SeedRule | None:
        """How seeds are spent where they are sequential.

        Raises:
            UserError: nothing is compared.
        """
        if self.seeds is None:
            return None
        compared = len(governed(self.comparisons))
        if not compared:
            raise UserError(f"{self.name}, seeds: nothing is compared with none or kd, so further seeds have no aim; list them")
        return SeedRule(self.seeds.first, self.seeds.most, compared, self.until)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the data sets, by the digest of a cell's `data`."""
        return {key: found.shape for key, found in self.looks.items()}

    @property
    def data(self) -> list[tuple[str, Look]]:
        """Each data set by the name that people know, with what was found of it."""
        specs = {digest(cell.data): cell.data for cell in self.cells}
        return [(data_name(spec), self.looks[key]) for key, spec in specs.items()]

    @property
    def warnings(self) -> list[str]:
        """What is suspicious about the data, and what `--set` has left out, a line each."""
        return [*(f"warning: data {name}: {note}" for name, found in self.data for note in found.notes), *self.declared.notes]

    @property
    def timed(self) -> list[Cell]:
        """The cells whose steps a probe has to time. Those of `equal_cost` take the steps of the full schedule, trials those
        of the value that is chosen."""
        return [cell for cell in self.cells if cell.id not in self.declared.equal_cost and cell.id not in self._of_trials]

    @cached_property
    def _of_trials(self) -> dict[str, int]:
        """Number of the choice by the ids of trials and of teachers that teach nothing else."""
        found = self.declared.trials
        ordinary = {name for cell in self.cells if cell.id not in found for name in cell.waits_for}
        ordinary |= self.declared.students - found.keys()
        private = {
            name: found[cell.id] for cell in self.cells if cell.id in found for name in cell.waits_for if name not in ordinary
        }
        return {**found, **private}

    @property
    def precision_of_device(self) -> str | None:
        """The cells' precision where the file leaves it to the device; None where it does not, or they differ."""
        found = {cell.precision for cell in self.cells}
        return found.pop() if self.source.get("precision", "auto") == "auto" and len(found) == 1 else None

    @property
    def by_id(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells}

    def with_teachers(self, names: Iterable[str]) -> frozenset[str]:
        """Ids of the cells that are named by enough of their ids, and of their teachers.

        Raises:
            UserError: a name is that of no cell, or of several.
        """
        found: set[str] = set()
        for name in names:
            hits = [cell for cell in self.cells if cell.id == name]
            hits = hits or [cell for cell in self.cells if name and name in cell.id]
            if not hits:
                raise unknown("cell", name, self.by_id, f"{self.name}, --cell")
            if len(hits) > 1:
                raise UserError(f"{self.name}, --cell: {name} names {len(hits)} cells")
            found |= {hits[0].id, *hits[0].waits_for}
        return frozenset(found)

    def spending(self, seeds: SequentialSeeds) -> Grid:
        """The grid with the cells of its first seeds; the others are held back until a result asks for them."""
        first = {cell.id for cell in self.cells if cell.id in self.declared.students and cell.seed < seeds.first}
        return replace(self, seeds=seeds).asking_for(first)

    def asking_for(self, students: Collection[str]) -> Grid:
        """The grid with the cells of these ids, and their teachers; the others are held back."""
        every = self.every or self.cells
        asked = set(students) | {name for cell in every if cell.id in students for name in cell.waits_for}
        return replace(self, cells=[cell for cell in every if cell.id in asked], every=every)

    @property
    def reserve(self) -> list[Cell]:
        """What is held back of sequential seeds."""
        asked = {cell.id for cell in self.cells}
        return [cell for cell in self.every if cell.id not in asked]

    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` in the grid's folder holds."""
        teachers = {name for cell in self.cells for name in cell.waits_for}
        specs = [cell.method for cell in self.cells]
        keys = {part["type"] for spec in specs for part in nested(spec)}
        where = facts(self.by_id)
        return {
            "about": self.about,
            "grid": self.source,
            "cells": [self._entry(cell, cell.id in teachers) | where[cell.id] for cell in self.cells],
            "comparisons": count(self.comparisons)._asdict(),
            "skipped": [{"what": skip.what, "reason": skip.reason} for skip in self.skipped],
            "methods": {key: asdict(METHODS.get(key).card) for key in sorted(keys)},
            "plugins": {key: found._asdict() for key, found in signatures(specs).items()},
        } | {key: value for key, value in (("code", own_code(self.cells)), ("rule", self._rule())) if value}

    def _rule(self) -> dict[str, float]:
        return {} if (rule := self.rule) is None else rule.as_json()

    def _entry(self, cell: Cell, teaches: bool) -> dict[str, Any]:
        """A cell in the manifest; "group" is shared by all seeds of a method on a pair."""
        entry: dict[str, Any] = {"id": cell.id, "label": cell.label, "family": method_family(cell.method), "teacher": teaches}
        entry |= {"group": cell.cost_key, "seed": cell.seed}
        entry |= {"primary": True} if cell.id in self.declared.primary else {}
        entry |= {"own_label": True} if cell.id in self.declared.labeled else {}
        entry |= {"trial": number} if (number := self._of_trials.get(cell.id)) is not None else {}
        entry |= {"choice": number} if (number := self.declared.chosen.get(cell.id)) is not None else {}
        entry |= {"equal_cost": steps} if (steps := self.declared.equal_cost.get(cell.id)) else {}
        search = self.declared.searches.get(cell.id)
        return entry | ({"search": search} if search is not None else {})
