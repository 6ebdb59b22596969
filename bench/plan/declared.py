"""What a grid states about its cells beside what trains them: which comparisons are primary, which values are a search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.errors import UserError
from bench.plan.grid_file import GridFile
from bench.plan.specs import complete, expand_methods, pair_presets
from bench.records.cell import Cell
from methods import METHODS


class Declared(NamedTuple):
    """By ids of cells; it changes none of them."""

    students: frozenset[str] = frozenset()  # all but the cells that are trained to teach only
    primary: frozenset[str] = frozenset()  # of the methods in question
    searches: Mapping[str, int] = {}  # number of the search that tried a cell's values
    labeled: frozenset[str] = frozenset()  # whose method has a label of the user's own


class Declarations:
    """Collects the entries of `primary` and `search`, and which cells they are about."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], set[str]] = {}  # by key and entry
        self._places: dict[tuple[str, str], str] = {}  # where such an entry stands first
        self.labeled: set[str] = set()  # ids of cells whose method has a label of the user's own

    def add(self, file: GridFile, pair: str | None, cells: Sequence[Cell], where: str) -> None:
        """Find the cells that a file's entries are about.

        Args:
            pair: "teacher/student", as presets name it.
            cells: of this pair.
            where: the file's place, for errors.
        """
        for key, entries in (("primary", file.primary), ("search", file.search)):
            for index, entry in enumerate(entries):
                name = key, json.dumps(entry, sort_keys=True)
                self._places.setdefault(name, f"{where}, {key}[{index}]")
                ids = self._ids.setdefault(name, set())
                for short, at, _ in expand_methods([entry], f"{where}, {key}"):
                    spec = complete(METHODS, "method", pair_presets(short, pair, at), at)
                    ids |= {cell.id for cell in cells if cell.method == spec}

    def check_label(self, cell_id: str, cell: Cell, others: Mapping[str, Cell], own: bool, where: str) -> None:
        """Note whether the cell's label is the user's own, and refuse one that another method of its pair has.

        Raises:
            UserError: two methods would be called the same.
        """
        if own:
            self.labeled.add(cell_id)
        for other_id, other in others.items():
            if other.label == cell.label and other.method != cell.method and (own or other_id in self.labeled):
                raise UserError(f"{where}: two methods would be called {cell.label}; give one of them another `label`")

    def declared(self, students: Mapping[str, Any]) -> Declared:
        """All of it, given the students by their ids.

        Raises:
            UserError: an entry names no method of the grid.
        """
        for (key, entry), ids in self._ids.items():
            if not ids:
                hint = f"write it as in `methods`, or leave it out: --set '{key}=[]'"
                raise UserError(f"{self._places[key, entry]}: {entry} names no method of this grid; {hint}")
        primary = frozenset[str]().union(*(ids for (key, _), ids in self._ids.items() if key == "primary"))
        searches = [ids for (key, _), ids in self._ids.items() if key == "search"]
        numbers = {cell: number for number, ids in enumerate(searches) for cell in ids}
        return Declared(frozenset(students), primary, numbers, frozenset(self.labeled))
