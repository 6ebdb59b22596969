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

Every file is written beside its place and renamed into it, so that a reader sees all of it or none. No torch here.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, SoftFileLock
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.errors import UserError, unknown
from bench.records import files, requests
from bench.records.cell import digest, safe
from bench.records.cell_folder import RECORD, CellFolder
from bench.records.files import Problem
from bench.records.record import Cost, Record
from bench.records.teacher import TeacherAccuracy

OTHER_FOLDERS = ("report", "cost", "launches", "superseded")  # of a grid, beside its cells'


Arrays = list[list[list[str]]]  # of a launch: its arrays, their jobs, the ids of the cells of each
ARRAYS = TypeAdapter(Arrays)


class Launch(NamedTuple):
    """What was handed to a cluster at one time."""

    backend: str  # the kind of cluster
    arrays: Arrays


class Finding(NamedTuple):
    """What came of trying a kind of cell out before its training."""

    error: str | None  # "": none; None: it is being tried, or the process died of it
    trace: str = ""
    again: bool = False  # whether the next run may find otherwise


CHECKS = TypeAdapter(dict[str, Finding])


class Manifest(BaseModel):
    """The part of a manifest that this program relies on; other keys are kept as they are."""

    class _Cell(BaseModel):
        id: str = Field(pattern=r"^[a-z0-9_+.-]{1,120}$")
        label: str

    class _Skip(BaseModel):
        what: str
        reason: str

    cells: list[_Cell]
    skipped: list[_Skip]


class ResultsFolder:
    """Grids of results, side by side."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._resolved = self.root.resolve()

    def __repr__(self) -> str:
        return f"ResultsFolder({str(self.root)!r})"

    def grid(self, name: str) -> GridFolder:
        """A grid's folder, which need not exist.

        Raises:
            UserError: the name is not one of a folder below the root.
        """
        return GridFolder(self, name)

    def grids(self) -> list[str]:
        """Names of the grids that have a manifest."""
        return sorted(path.parent.name for path in self.root.glob("*/manifest.json"))

    def inside(self, path: Path) -> Path:
        """The path itself.

        Raises:
            UserError: it has an unsafe name, or leads out of the root by a link.
        """
        if path.name != safe(path.name) or not path.resolve().is_relative_to(self._resolved):
            raise UserError(f"'{path.name}' cannot name a folder in {self.root}: use at most 80 of a-z 0-9 _ + . -")
        return path

    def find(self, text: str) -> CellFolder:
        """The one cell whose id starts with, or contains, this text.

        Raises:
            UserError: none or several do.
        """
        every = [cell for name in self.grids() for cell in self.grid(name).cells()]
        hits = [cell for cell in every if cell.id.startswith(text)] or [cell for cell in every if text in cell.id]
        if not hits:
            raise unknown("cell", text, {cell.id for cell in every}, str(self.root))
        names = sorted({cell.id for cell in hits})
        if len(names) > 1:
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise UserError(f"'{text}' names {len(names)} cells: {', '.join(names[:8])}{rest}")
        return hits[0]

    def teacher_accuracy(self, key: str) -> TeacherAccuracy | None:
        """What was measured of a teacher, by its `bench.records.teacher.key_of`; None where nothing was."""
        body = files.read_hint(self.root / "teachers" / f"{safe(key)}.json")
        try:
            return files.parse(TeacherAccuracy, body) if body else None
        except ValueError:
            return None  # it is measured again

    def write_teacher_accuracy(self, accuracy: TeacherAccuracy) -> None:
        files.write_json(self.root / "teachers" / f"{safe(accuracy.key)}.json", accuracy)

    def adopt(self, cell: CellFolder, with_weights: bool, fits: Callable[[Record], bool] = lambda record: True) -> bool:
        """Copy a finished cell from another grid of this folder, so that it is not trained twice.

        Args:
            fits: whether a record may be used.
        """
        for path in sorted(self.root.glob(f"*/{cell.id}/{RECORD}")):
            name = path.parent.parent.name
            if name == cell.grid.name or name != safe(name):
                continue
            other = self.grid(name).cell(cell.id)
            if other.done() and not other.unusable(with_weights) and (record := other.record()) and fits(record):
                cell.copy_from(other)
                return True
        return False


class GridFolder:
    """The results of one grid."""

    def __init__(self, results: ResultsFolder, name: str) -> None:
        self.results, self.name = results, name
        self._path = results.inside(results.root / name)

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
        return sorted(path.name for path in self._path.iterdir() if path.is_dir()) if self._path.is_dir() else []

    def cells(self) -> Iterator[CellFolder]:
        """Folders of cells, in the order of their ids, whatever they hold."""
        for name in self.folders():
            if name not in OTHER_FOLDERS and name == safe(name):
                yield self.cell(name)

    def check_writable(self) -> None:
        """Fail before anything is trained rather than after.

        Raises:
            UserError: the folder cannot be made or written, or its file system has no locks.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path) as file:
                file.write(b"0" * 4096)
                file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write results in {self._path}: {error.strerror}; choose another folder with --results"
            ) from None
        try:
            with FileLock(self._path / ".lock", timeout=5) as lock:
                if isinstance(lock, SoftFileLock):  # a mere marker file, which would outlive a holder that is killed
                    raise OSError("no flock")
        except TimeoutError:
            pass  # another run looks at the same moment: locks work
        except (OSError, NotImplementedError) as error:  # the second is what filelock raises where flock is missing
            raise UserError(
                f"{self._path}: its file system cannot lock files ({error}); mount it with locks, or choose another folder"
            ) from None

    def write_manifest(self, manifest: dict[str, Any], commit: str | None = None) -> None:
        """Write what the grid consists of; keys of the manifest before it that the new one lacks are kept.

        A request for other trainings than the last is added to the history of requests.
        """
        path = self._path / "manifest.json"
        former = files.read_hint(path)
        body = (former or {}) | manifest
        history = body.get("requests") or (requests.rebuilt(self.records()[0]) if former else [])
        history = requests.appended(history, body["cells"], lambda name: self.cell(name).done(), commit, body.get("rule"))
        files.write_json(path, body | ({"requests": history} if history else {}))

    def request(self, manifest: dict[str, Any], file: str | None = None, commit: str | None = None) -> None:
        """Add what is asked for now to the manifest, which stays the union of all that was ever asked of this grid.

        Cells of former requests that are not asked for now are marked "earlier"; what is not trained of them is not missing.

        Args:
            manifest: of the present request.
            file: the grid file's path, relative to the results folder; None: the request is of none.
        """
        former = files.read_hint(self._path / "manifest.json") or {}
        present = {cell["id"] for cell in manifest["cells"]}
        earlier = [cell | {"earlier": True} for cell in former.get("cells", []) if cell["id"] not in present]
        body = manifest | {"cells": [*manifest["cells"], *earlier]} | ({"file": file} if file else {})
        body |= {"rule": manifest.get("rule")} if "rule" in former else {}
        for key in ("methods", "plugins", "code"):
            both = former.get(key, {}) | manifest.get(key, {})
            body |= {key: both} if both else {}
        counts, now = former.get("comparisons", {}), manifest.get("comparisons", {})
        body |= {"comparisons": {key: max(now[key], counts.get(key, 0)) for key in now}} if now else {}
        self.write_manifest(body, commit)

    def add_look(self, rule: Mapping[str, float], compared: Sequence[Mapping[str, Any]], commit: str | None) -> None:
        """Add a look at sequential seeds to the manifest, which keeps all of them; one that finds nothing new is none.

        Args:
            compared: what was found of each comparison, see `bench.records.requests.Look`.
        """
        manifest = self.manifest()
        looks = requests.with_look(manifest.get("looks", []), rule, compared, commit)
        if looks != manifest.get("looks"):
            self.write_manifest(manifest | {"looks": looks}, commit)

    def grid_file(self) -> str | None:
        """The path of the grid file that was run here last, as `request` got it; None where none is known."""
        found = (files.read_hint(self._path / "manifest.json") or {}).get("file")
        return found if isinstance(found, str) else None

    def add_to_manifest(self, manifest: dict[str, Any]) -> None:
        """Add what the manifest here does not know: cells, cards of methods, and requests."""
        if self.name in self.results.grids():
            ours = self.manifest()
            known = {cell["id"] for cell in ours["cells"]}
            new = [cell for cell in manifest["cells"] if cell["id"] not in known]
            cards, code = ({**manifest.get(key, {}), **ours.get(key, {})} for key in ("methods", "code"))
            both = {key: requests.merged(ours.get(key, []), manifest.get(key, [])) for key in ("requests", "looks")}
            manifest = (
                ours | {"cells": ours["cells"] + new} | ({"methods": cards} if cards else {}) | ({"code": code} if code else {})
            )
            manifest |= {key: history for key, history in both.items() if history}
        self.write_manifest(manifest)

    def manifest(self) -> dict[str, Any]:
        """{"about", "cells": [{"id", "label", ...}], "skipped": [{"what", "reason"}], "grid", ...}.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = self._path / "manifest.json"
        try:
            manifest = files.read_json(path)
            Manifest.model_validate(manifest)
            return manifest
        except FileNotFoundError:
            raise unknown("results", self.name, self.results.grids(), str(self.results.root)) from None
        except ValueError as error:
            reason = files.first(error) if isinstance(error, ValidationError) else error
            raise UserError(f"{path}: {reason}; `run` writes it anew") from None

    def records(self) -> tuple[list[Record], list[Problem]]:
        """All usable records, in the order of their ids, and what could not be used."""
        records, problems = [], []
        for cell in self.cells():
            try:
                if record := cell.record():
                    records.append(record)
            except (ValueError, OSError) as error:
                problems.append(Problem(cell.place(RECORD), str(error)))
        return records, problems

    def costs(self) -> tuple[list[Cost], list[Problem]]:
        """All usable costs, and what could not be used."""
        costs, problems = [], []
        for path in sorted((self._path / "cost").glob("*.json")):
            try:
                costs.append(files.parse(Cost, files.read_json(path)))
            except (ValueError, OSError) as error:
                problems.append(Problem(f"{self.name}/cost/{path.name}", str(error)))
        return costs, problems

    def write_cost(self, cost: Cost) -> None:
        """Write a cost in place of an older one; beside it where another version wrote that."""
        name = "-".join(filter(None, [cost.key, digest(cost.machine.hardware)[:8], cost.path]))
        names = (f"{name}-{number}.json" if number else f"{name}.json" for number in itertools.count())
        files.write_json(next(path for each in names if not _other_version(path := self._path / "cost" / each)), cost)

    def check_lock(self) -> FileLock:
        """Held by whoever tries cells out."""
        self._path.mkdir(parents=True, exist_ok=True)
        return FileLock(self._path / "check.lock")

    def checks(self) -> dict[str, Finding]:
        """What was tried out before, by kind; empty where the file is absent or damaged."""
        found = (files.read_hint(self._path / "checks.json") or {}).get("checks")
        with contextlib.suppress(ValidationError):
            return CHECKS.validate_python(found or {})
        return {}

    def write_checks(self, checks: dict[str, Finding]) -> None:
        files.write_json(self._path / "checks.json", {"checks": {kind: finding._asdict() for kind, finding in checks.items()}})

    def launch_folder(self, launch: str) -> Path:
        """For what submitit writes of one launch."""
        folder = self._path / "launches" / safe(launch)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def write_launch(self, launch: str, backend: str, arrays: Arrays) -> None:
        files.write_json(self._path / "launches" / f"{safe(launch)}.json", {"arrays": arrays, "backend": backend})

    def launches(self) -> dict[str, Launch]:
        """What was handed to clusters, by the launch's name. Damaged files are left out: they are hints."""
        found = {}
        for path in sorted((self._path / "launches").glob("*.json")):
            with contextlib.suppress(ValueError, OSError):
                body = files.read_json(path)
                found[path.stem] = Launch(str(body.get("backend", "slurm")), ARRAYS.validate_python(body.get("arrays")))
        return found

    def superseded_folder(self, cell_id: str) -> Path:
        """A new folder for what a training of this cell has left and another replaces."""
        folders = (self._path / "superseded" / f"{safe(cell_id)}-{number}" for number in itertools.count(1))
        folder = next(path for path in folders if not path.exists())
        folder.mkdir(parents=True)
        return folder

    def report_folder(self) -> Path:
        return self._path / "report"

    def set_aside_files(self) -> list[str]:
        """Damaged files of cells that were set aside, relative to the results folder."""
        return [str(path.relative_to(self.results.root)) for path in sorted(self._path.glob("*/*.damaged-*"))]

    def clean(self, weights: bool) -> int:
        """Remove what finished cells no longer need: checkpoints, damaged files that were set aside, and, if `weights`, the
        weights of cells that teach nobody. Returns the bytes freed."""
        teachers = {cell["id"] for cell in self.manifest()["cells"] if cell.get("teacher")}
        return sum(cell.clean(weights and cell.id not in teachers) for cell in self.cells() if cell.done())


def _other_version(path: Path) -> bool:
    """Whether a cost is intact and cannot be read by this version."""
    try:
        files.parse(Cost, files.read_json(path))
    except files.UnreadableError:
        return True
    except (ValueError, OSError):
        pass
    return False
