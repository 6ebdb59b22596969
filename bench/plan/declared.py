"""What a grid states about its cells beside what trains them: which comparisons are primary, which values are a search."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bench.errors import UserError
from bench.plan.choice import Choice
from bench.plan.grid_file import GridFile
from bench.plan.specs import complete, expand_methods, pair_presets
from bench.records.cell import Cell
from methods import METHODS

TAKE_AWAY = {"methods", "pairs", "also"}  # keys by which `--set` can leave out methods
NOTHING_LEFT = {
    "primary": "without it all comparisons are one family, none of them primary",
    "search": "without it nothing counts as a search",
}


class Declared(NamedTuple):
    """By ids of cells; it changes none of them."""

    students: frozenset[str] = frozenset()  # all but the cells that are trained to teach only
    primary: frozenset[str] = frozenset()  # of the methods in question
    searches: Mapping[str, int] = {}  # number of the search that tried a cell's values
    labeled: frozenset[str] = frozenset()  # whose method has a label of the user's own
    equal_cost: Mapping[str, str] = {}  # of cells with another number of epochs, the cost key of the full schedule's
    choices: tuple[Choice, ...] = ()  # among values of a method
    chosen: Mapping[str, int] = {}  # number of the choice that has chosen a cell's values
    notes: tuple[str, ...] = ()  # what was left out of these keys, a line each

    @property
    def trials(self) -> dict[str, int]:
        """Number of the choice by the id of a cell that tries a value."""
        return {cell: number for number, choice in enumerate(self.choices) for value in choice.values for cell in value.trials}


class Declarations:
    """Collects the entries of `primary` and `search`, and which cells they are about."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], set[str]] = {}  # by key and entry
        self._places: dict[tuple[str, str], str] = {}  # where such an entry stands first
        self.labeled: set[str] = set()  # ids of cells whose method has a label of the user's own
        self.ordinary: set[str] = set()  # ids of cells with the full schedule
        self.equal_cost: dict[str, str] = {}
        self.choices: list[Choice] = []
        self.notes: dict[str, None] = {}

    def add(self, file: GridFile, pair: str | None, cells: Sequence[Cell], where: str) -> None:
        """Find the cells that a file's entries are about.

        Args:
            pair: "teacher/student", as presets name it.
            cells: of this pair.
            where: the file's place, for errors.
        """
        self.ordinary |= {cell.id for cell in cells}
        for key, entries in (("primary", file.primary), ("search", file.search)):
            for index, entry in enumerate(entries):
                name = key, json.dumps(entry, sort_keys=True)
                self._places.setdefault(name, f"{where}, {key}[{index}]")
                ids = self._ids.setdefault(name, set())
                for short, at, _ in expand_methods([entry], f"{where}, {key}"):
                    spec = complete(METHODS, "method", pair_presets(short, pair, at), at)
                    ids |= {cell.id for cell in cells if cell.method == spec}

    def lacks_full(self, name: str, where: str, overridden: Collection[str]) -> None:
        """Leave a method out of `equal_cost` that `--set` has taken out of `methods`.

        Raises:
            UserError: the grid itself has not got it.
        """
        if "equal_cost" in overridden or not TAKE_AWAY & set(overridden):
            raise UserError(f"{where}: {name} is not among this grid's `methods`; its full training has to stand beside it")
        self.notes[f"equal_cost: {name} is left out, as --set took it away"] = None

    def declared(self, students: Mapping[str, Any], overridden: Collection[str] = ()) -> Declared:
        """All of it, given the students by their ids.

        Args:
            overridden: keys that `--set` has set. Where it took methods away, entries about these are left out.

        Raises:
            UserError: an entry names no method of the grid.
        """
        notes = [*self.notes]
        for key in ("primary", "search"):
            lost = [entry for (of, entry), ids in self._ids.items() if of == key and not ids]
            if not lost:
                continue
            if key in overridden or not TAKE_AWAY & set(overridden):
                hint = f"write it as in `methods`, or leave it out: --set '{key}=[]'"
                raise UserError(f"{self._places[key, lost[0]]}: {lost[0]} names no method of this grid; {hint}")
            left = [entry for (of, entry), ids in self._ids.items() if of == key and ids]
            rest = f"{', '.join(left)} stays" if left else NOTHING_LEFT[key]
            notes.append(f"{key}: {', '.join(lost)} is left out, as --set took it away; {rest}")
        primary = frozenset[str]().union(*(ids for (key, _), ids in self._ids.items() if key == "primary"))
        searches = [ids for (key, _), ids in self._ids.items() if key == "search"]
        numbers = {cell: number for number, ids in enumerate(searches) for cell in ids}
        equal_cost = {cell: steps for cell, steps in self.equal_cost.items() if cell not in self.ordinary}
        return Declared(
            frozenset(students),
            primary,
            searches=numbers,
            labeled=frozenset(self.labeled),
            equal_cost=equal_cost,
            choices=tuple(self.choices),
            notes=tuple(notes),
        )
