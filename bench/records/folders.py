"""The results folder and its grids: with `cell_folder.py` all that knows paths. Handles give and take contents, not paths.

    <root>/<grid>/manifest.json             what the grid consists of, written by `run`
    <root>/<grid>/<cell>/record.json        the truth: present and intact means done
    <root>/<grid>/<cell>/curves.csv         one row an epoch
    <root>/<grid>/<cell>/correct.bin        a bit for each test image: whether it was classified correctly
    <root>/<grid>/<cell>/weights.safetensors
    <root>/<grid>/<cell>/checkpoint         while it trains: a digest, then what torch.save wrote
    <root>/<grid>/<cell>/progress.json, failure.json, attempts.json, eager.json, log.txt, lock
    <root>/<grid>/<cell>/visual/            what mmengine's visualizer backends write
    <root>/<grid>/cost/<key>-<hardware>.json
    <root>/<grid>/checks.json               what was tried out before a training, and what failed; a hint
    <root>/<grid>/launches/<launch>.json    what was handed to a cluster, and beside it what submitit writes; hints only
    <root>/<grid>/superseded/<cell>-<n>/    results, weights apart, that other code of the user made, before the present ones
    <root>/<grid>/report/
    <root>/teachers/<key>.json              the accuracy of a teacher that was not trained here

Every file is read and written through `files.Folder`: complete or not at all, and never through a link. No torch here.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError, unknown
from bench.records import batch, files, requests
from bench.records.cell import digest, is_id, is_safe, safe
from bench.records.cell_folder import RECORD, WEIGHTS, CellFolder
from bench.records.files import TEXT, Folder
from bench.records.grid_hints import GridHints
from bench.records.manifest import added, mistake, united
from bench.records.problems import BarredError, Problem, UnreadableError, reason
from bench.records.record import Cost, Record
from bench.records.teacher import TeacherAccuracy

MANIFEST, LOCK = "manifest.json", ".lock"
OTHER_FOLDERS = ("report", "cost", "launches", "superseded")  # of a grid, beside its cells'


LOST = "lost+found"  # the system's own folder at the top of a disk
LOCK_S = 30.0  # that one process waits for another which writes the manifest


class ResultsFolder:
    """Grids of results, side by side."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.place = Folder(root)

    def __repr__(self) -> str:
        return f"ResultsFolder({str(self.root)!r})"

    def grid(self, name: str) -> GridFolder:
        """A grid's folder, which need not exist.

        Raises:
            UserError: the name is not one of a folder below the root.
        """
        return GridFolder(self, name)

    def grids(self) -> list[str]:
        """Names of the grids that have a manifest; what cannot be looked into is left out."""
        return self.looked_into()[0]

    def looked_into(self) -> tuple[list[str], list[Problem]]:
        """The same, and what cannot be looked into."""
        found, barred = [], []
        for entry in self.place.entries():
            if entry.kind == "folder" and is_safe(entry.name) and entry.name != LOST:
                try:
                    found += [entry.name] * self.place.at(entry.name).has(MANIFEST)
                except (OSError, BarredError) as error:
                    barred.append(Problem(entry.name, f"it cannot be looked into: {reason(error)}"))
        return found, barred

    def below(self, *names: str) -> Folder:
        """A folder of a grid, or of a cell of it, which need not exist.

        Raises:
            UserError: a name is unsafe.
        """
        for name in names:
            if not is_safe(name):
                raise UserError(f"'{name[:130]}' cannot name a folder in {self.root}: use at most 120 of a-z 0-9 _ + . -")
        return self.place.at(*names)

    def find(self, text: str) -> CellFolder:
        """The one cell whose id starts with, or contains, this text; where several grids have it, a finished one with weights.

        Raises:
            UserError: none or several do.
        """
        every: list[CellFolder] = []
        names, barred = self.looked_into()
        for name in names:
            try:
                every += self.grid(name).cells()
            except (OSError, BarredError) as error:  # the others are looked at all the same
                barred.append(Problem(name, f"it cannot be looked into: {reason(error)}"))
        hits = [cell for cell in every if cell.id.startswith(text)] or [cell for cell in every if text in cell.id]
        if not hits or not text:  # which every id contains
            more = "".join(f"; {problem.path}: {problem.reason}" for problem in barred)
            raise UserError(f"{unknown('cell', text, {cell.id for cell in every}, str(self.root))}{more}")
        names = sorted({cell.id for cell in hits})
        if len(names) > 1:
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise UserError(f"'{text}' names {len(names)} cells: {', '.join(names[:8])}{rest}")
        return hits[0] if len(hits) == 1 else max(hits, key=lambda cell: (cell.done(), cell.has(WEIGHTS)))

    def teacher_accuracy(self, key: str) -> TeacherAccuracy | None:
        """What was measured of a teacher, by its `bench.records.teacher.key_of`; None where nothing was."""
        body = self.place.at("teachers").read_hint(f"{safe(key)}.json")
        try:
            return files.parse(TeacherAccuracy, body) if body else None
        except ValueError:
            return None  # it is measured again

    def write_teacher_accuracy(self, accuracy: TeacherAccuracy) -> None:
        self.place.at("teachers").write_json(f"{safe(accuracy.key)}.json", accuracy)

    def adopt(self, cell: CellFolder, with_weights: bool, fits: Callable[[Record], bool] = lambda record: True) -> bool:
        """Copy a finished cell from another grid of this folder, so that it is not trained twice.

        Args:
            fits: whether a record may be used.
        """
        for name in self.grids():
            other = self.grid(name).cell(cell.id)
            if name == cell.grid.name or not other.done() or other.unusable(with_weights):
                continue
            if (record := other.record()) and fits(record):
                with contextlib.suppress(ValueError, TimeoutError):  # damaged meanwhile, or another trains the cell now
                    cell.copy_from(other)
                    return True
        return False


class GridFolder(GridHints):
    """The results of one grid."""

    def __init__(self, results: ResultsFolder, name: str) -> None:
        self.results, self.name = results, name
        self._folder = results.below(name)

    def __repr__(self) -> str:
        return f"{self.results!r}.grid({self.name!r})"

    def cell(self, cell_id: str) -> CellFolder:
        """A cell's folder, which need not exist.

        Raises:
            UserError: the id is not the name of a folder below this one.
        """
        return CellFolder(self, cell_id)

    def folders(self) -> list[str]:
        """Names of all folders in this one."""
        return [entry.name for entry in self._folder.entries() if entry.kind == "folder"]

    def strangers(self) -> list[Problem]:
        """What stands in the place of a folder that this program writes, and is none."""
        return [
            Problem(f"{self.name}/{entry.name}", f"a folder belongs there, and this is a {entry.kind}")
            for entry in self._folder.entries()
            if entry.kind != "folder" and (entry.name in OTHER_FOLDERS or is_id(entry.name))
        ]

    def cells(self) -> Iterator[CellFolder]:
        """Folders of cells, in the order of their ids, whatever they hold."""
        for name in self.folders():
            if name not in OTHER_FOLDERS and is_safe(name):
                yield self.cell(name)

    def check_writable(self) -> None:
        """Fail before anything is trained rather than after.

        Raises:
            UserError: the folder cannot be made or written, or its file system has no locks.
        """
        name, place = ".writable", f"{self.results.root / self.name}"
        try:
            self._folder.write(name, b"0" * 4096)
            self._folder.remove(name)
        except OSError as error:
            raise UserError(
                f"cannot write results in {place}: {error.strerror}; choose another folder with --results"
            ) from None
        try:
            with self.lock():
                pass
        except TimeoutError:
            pass  # another run looks at the same moment: locks work
        except OSError as error:
            raise UserError(
                f"{place}: its file system cannot lock files ({error.strerror}); mount it with locks, or choose another folder"
            ) from None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held while what belongs to no cell is read, changed and written."""
        return self._folder.lock(LOCK, LOCK_S)

    def write_manifest(self, manifest: dict[str, Any], commit: str | None = None) -> None:
        """Write what the grid consists of; keys of the manifest before it that the new one lacks are kept.

        A request for other trainings than the last is added to the history of requests.
        """
        former = self._former()
        if not former and self._folder.has(MANIFEST):
            self._folder.aside(MANIFEST)  # it is damaged, or of another version
        body = (former or {}) | manifest
        history = body.get("requests") or (requests.rebuilt(self.records()[0]) if former else [])
        history = requests.appended(history, body["cells"], lambda name: self.cell(name).done(), commit, body.get("rule"))
        self._folder.write_json(MANIFEST, body | ({"requests": history} if history else {}))

    def request(self, manifest: dict[str, Any], file: str | None = None, commit: str | None = None) -> None:
        """Add what is asked for now to the manifest, which stays the union of all that was ever asked of this grid.

        Cells of former requests that are not asked for now are marked "earlier"; what is not trained of them is not missing.

        Args:
            manifest: of the present request.
            file: the grid file's path, relative to the results folder; None: the request is of none.
        """
        with self.lock():
            self.write_manifest(united(self._former(), manifest, file), commit)

    def add_look(self, rule: Mapping[str, float], compared: Sequence[Mapping[str, Any]], commit: str | None) -> None:
        """Add a look at sequential seeds to the manifest, which keeps all of them; one that finds nothing new is none.

        Args:
            compared: what was found of each comparison, see `bench.records.requests.Look`.
        """
        with self.lock():
            manifest = self.manifest()
            looks = requests.with_look(manifest.get("looks", []), rule, compared, commit)
            if looks != manifest.get("looks"):
                self.write_manifest(manifest | {"looks": looks}, commit)

    def _former(self) -> dict[str, Any]:
        """The manifest, or nothing where there is none or it is damaged: it is written anew then.

        Raises:
            OSError: it cannot be read now; to write it anew would lose what it holds.
        """
        try:
            found = self._folder.read_json(MANIFEST, TEXT)
        except (FileNotFoundError, ValueError):
            return {}
        return {} if mistake(found) else found

    def grid_file(self) -> str | None:
        """The path of the grid file that was run here last, as `request` got it; None where none is known."""
        found = self._former().get("file")
        return found if isinstance(found, str) else None

    def add_to_manifest(self, manifest: dict[str, Any]) -> None:
        """Add what the manifest here does not know: cells, cards of methods, and requests."""
        with self.lock():
            known = self._folder.has(MANIFEST)
            self.write_manifest(added(self.manifest(), manifest) if known else manifest)

    def manifest(self) -> dict[str, Any]:
        """{"about", "cells": [{"id", "label", ...}], "skipped": [{"what", "reason"}], "grid", ...}.

        Raises:
            UserError: there is none, it cannot be read, or it is damaged.
        """
        try:
            manifest = self._folder.read_json(MANIFEST, TEXT)
            why = mistake(manifest)
        except FileNotFoundError:
            raise unknown("results", self.name, self.results.grids(), str(self.results.root)) from None
        except OSError as error:
            self.results.place.entries()  # fails where the fault is the results folder's own
            raise UserError(f"{self.results.root / self.name / MANIFEST}: {reason(error)}") from None
        except BarredError:
            raise
        except ValueError as error:
            why = reason(error)
        if why:
            raise UserError(f"{self.results.root / self.name / MANIFEST}: {why}; `run` writes it anew")
        return manifest

    def records(self) -> tuple[list[Record], list[Problem]]:
        """All usable records, in the order of their ids, and what could not be used.

        Raises:
            OSError: the results folder itself cannot be read.
        """
        try:
            problems, cells = self.strangers(), list(self.cells())
        except (OSError, BarredError) as error:
            self.results.place.entries()  # likewise
            return [], [Problem(self.name, reason(error))]
        records = []
        for cell in cells:
            try:
                if record := cell.record():
                    records.append(record)
            except (ValueError, OSError) as error:
                problems.append(Problem(cell.place(RECORD), reason(error)))
        return records, problems

    def costs(self) -> tuple[list[Cost], list[Problem]]:
        """All usable costs, one of each step on one hardware, and what could not be used."""
        found: dict[tuple[str | None, ...], tuple[str, Cost]] = {}
        problems = []
        folder = self._folder.at("cost")
        try:
            names = [entry.name for entry in folder.entries() if entry.name.endswith(".json")]
        except (BarredError, OSError) as error:
            return [], [Problem(f"{self.name}/cost", reason(error))]
        for name in names:
            try:
                cost = files.parse(Cost, folder.read_json(name))
            except (ValueError, OSError) as error:
                problems.append(Problem(f"{self.name}/cost/{name}", reason(error)))
                continue
            key = cost.key, cost.machine.hardware, cost.path
            first, last = sorted([found.get(key, (name, cost)), (name, cost)], key=lambda each: each[1].measured)
            found[key] = last
            if first[1] != last[1]:
                why = f"the same was measured later, see {last[0]}; this is left out"
                problems.append(Problem(f"{self.name}/cost/{first[0]}", why))
        return [cost for _, cost in found.values()], problems

    def write_cost(self, cost: Cost) -> None:
        """Write a cost in place of an older one; beside it where another version wrote that."""
        name = "-".join(filter(None, [cost.key, digest(cost.machine.hardware)[:8], cost.path]))
        names = (f"{name}-{number}.json" if number else f"{name}.json" for number in itertools.count())
        folder = self._folder.at("cost")
        folder.write_json(next(each for each in names if not _other_version(folder, each)), cost)

    def superseded_folder(self, cell_id: str) -> Folder:
        """A new folder for what a training of this cell has left and another replaces."""
        folder = self._folder.at("superseded")
        return folder.at(next(name for n in itertools.count(1) if not folder.has(name := f"{safe(cell_id)}-{n}")))

    def report_folder(self) -> Path:
        """Where the report lies, as messages name it."""
        return self.results.root / self.name / "report"

    def report_place(self) -> Folder:
        return self._folder.at("report")

    def write_map(self, name: str, picture: bytes) -> Path:
        """Write a picture that the report shows; returns its path."""
        batch.check_places(maps := self.report_place().at("maps"), name)
        maps.write(name, picture)
        return self.report_folder() / "maps" / name

    def set_aside_files(self) -> list[str]:
        """Damaged files that were set aside, relative to the results folder."""
        own = [f"{self.name}/{entry.name}" for entry in self._folder.entries() if entry.name.startswith(f"{MANIFEST}.damaged-")]
        return own + [cell.place(name) for cell in self.cells() for name in cell.names("*.damaged-*")]

    def clean(self, weights: bool) -> int:
        """Remove what finished cells no longer need: checkpoints, damaged files that were set aside, and, if `weights`, the
        weights of cells that teach nobody. Returns the bytes freed.

        Raises:
            OSError: a cell could not be cleaned; the others were.
        """
        teachers = {cell["id"] for cell in self.manifest()["cells"] if cell.get("teacher")}
        freed, refused = 0, []
        for cell in self.cells():
            try:
                freed += cell.clean(weights and cell.id not in teachers) if cell.done() else 0
            except OSError as error:  # the others are cleaned all the same
                refused.append(error)
        if refused:
            raise refused[0]
        return freed


def _other_version(folder: Folder, name: str) -> bool:
    """Whether a cost is intact and cannot be read by this version."""
    try:
        files.parse(Cost, folder.read_json(name))
    except (ValueError, OSError) as error:
        return isinstance(error, UnreadableError)
    return False
