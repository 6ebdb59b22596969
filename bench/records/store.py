"""The results folder: the only file that knows its paths.

    <root>/<grid>/manifest.json             what the grid consists of, written by `run`
    <root>/<grid>/<cell>/record.json        the truth: present and intact means done
    <root>/<grid>/<cell>/curves.csv         one row an epoch
    <root>/<grid>/<cell>/weights.safetensors
    <root>/<grid>/<cell>/checkpoint         while it trains: a digest, then what torch.save wrote
    <root>/<grid>/<cell>/progress.json, failure.json, attempts.json, log.txt, lock
    <root>/<grid>/cost/<key>-<hardware>.json
    <root>/<grid>/launches/<launch>.json    what was handed to a cluster, and beside it what submitit writes; hints only
    <root>/<grid>/report/

Every file is written beside its place and renamed into it, so that a reader sees all of it or none. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, SoftFileLock
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.errors import UserError, unknown
from bench.records.cell import digest, safe
from bench.records.record import SCHEMA, Cost, Record, seal, unseal

Model = TypeVar("Model", Record, Cost)
OTHER_FOLDERS = ("report", "cost", "launches")  # of a grid, beside its cells'
ARRAYS = TypeAdapter(list[list[list[str]]])  # of a launch: its arrays, their jobs, the ids of the cells of each
SCRATCH = ("checkpoint", "progress.json", "failure.json", "attempts.json")  # of a cell, until it is done


class Manifest(BaseModel):
    """The part of a manifest that this program relies on."""

    class _Cell(BaseModel):
        id: str = Field(pattern=r"^[a-z0-9_+.-]{1,120}$")
        label: str

    class _Skip(BaseModel):
        what: str
        reason: str

    cells: list[_Cell]
    skipped: list[_Skip]


class DamagedError(ValueError):
    """A file of the store is missing or not the one that its record names."""


class Problem(NamedTuple):
    """A file that cannot be used, and why."""

    path: str  # relative to the root
    reason: str


class Store:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._resolved = self.root.resolve()

    # Paths

    def folder(self, grid: str) -> Path:
        return self._inside(self.root / grid)

    def cell(self, grid: str, cell_id: str) -> Path:
        return self._inside(self.folder(grid) / cell_id)

    def report_folder(self, grid: str) -> Path:
        return self.folder(grid) / "report"

    def lock(self, grid: str, cell_id: str) -> FileLock:
        """Held by whoever trains the cell; the system frees it when its holder dies, however it dies."""
        folder = self.cell(grid, cell_id)
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "lock", timeout=0.2)  # not 0: `locked` holds it for an instant

    def _inside(self, path: Path) -> Path:
        if path.name != safe(path.name) or not path.resolve().is_relative_to(self._resolved):
            raise UserError(f"'{path.name}' cannot name a folder in {self.root}: use at most 80 of a-z 0-9 _ + . -")
        return path

    # Writing

    def check_writable(self, grid: str) -> None:
        """Fail before anything is trained rather than after.

        Raises:
            UserError: the grid's folder cannot be made or written, or its file system has no locks.
        """
        folder = self.folder(grid)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(b"0" * 4096)
                file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write results in {folder}: {error.strerror}; choose another folder with --results"
            ) from None
        try:
            with FileLock(folder / ".lock", timeout=5) as lock:
                if isinstance(lock, SoftFileLock):  # a mere marker file, which would outlive a holder that is killed
                    raise OSError("no flock")
        except TimeoutError:
            pass  # another run looks at the same moment: locks work
        except (OSError, NotImplementedError) as error:  # the second is what filelock raises where flock is missing
            raise UserError(
                f"{folder}: its file system cannot lock files ({error}); mount it with locks, or choose another folder"
            ) from None

    def write(self, path: Path, content: bytes | str) -> str:
        """Write a whole file or nothing; returns the SHA-256 of its content."""
        raw = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return hashlib.sha256(raw).hexdigest()

    def write_json(self, path: Path, body: dict[str, Any] | BaseModel) -> None:
        """Write sealed JSON: see `bench.records.record.seal`."""
        plain = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
        self.write(path, json.dumps(seal(plain), indent=1, allow_nan=False) + "\n")

    def write_record(self, grid: str, record: Record) -> None:
        """The last act of a training: from here on the cell is done, and its scratch files go."""
        folder = self.cell(grid, record.id)
        self.write_json(folder / "record.json", record)
        for name in SCRATCH:
            (folder / name).unlink(missing_ok=True)

    def begin_attempt(self, grid: str, cell_id: str) -> int:
        """Count the workers that began this cell since its last checkpoint, this one included."""
        checkpoint = self.cell(grid, cell_id) / "checkpoint"
        head = None
        if checkpoint.exists():
            with checkpoint.open("rb") as file:
                head = file.read(64).hex()
        told = self.scratch(grid, cell_id, "attempts.json") or {}
        before = told.get("attempts") if told.get("checkpoint") == head else 0
        attempts = (before if isinstance(before, int) else 0) + 1
        self.write_json(self.cell(grid, cell_id) / "attempts.json", {"attempts": attempts, "checkpoint": head})
        return attempts

    def end_attempts(self, grid: str, cell_id: str) -> None:
        (self.cell(grid, cell_id) / "attempts.json").unlink(missing_ok=True)

    def write_cost(self, grid: str, cost: Cost) -> None:
        name = f"{cost.key}-{digest(cost.machine.hardware)[:8]}.json"
        self.write_json(self.folder(grid) / "cost" / name, cost)

    def write_manifest(self, grid: str, manifest: dict[str, Any]) -> None:
        self.write_json(self.folder(grid) / "manifest.json", manifest)

    def launch_folder(self, grid: str, launch: str) -> Path:
        """For what submitit writes of one launch."""
        folder = self.folder(grid) / "launches" / safe(launch)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def write_launch(self, grid: str, launch: str, arrays: list[list[list[str]]]) -> None:
        self.write_json(self.folder(grid) / "launches" / f"{safe(launch)}.json", {"arrays": arrays})

    def launches(self, grid: str) -> dict[str, list[list[list[str]]]]:
        """By launch: its arrays, their jobs, the ids of the cells of each. Unreadable ones are left out: they are hints."""
        found = {}
        for path in sorted((self.folder(grid) / "launches").glob("*.json")):
            with contextlib.suppress(ValueError, OSError):
                found[path.stem] = ARRAYS.validate_python(self.read_json(path).get("arrays"))
        return found

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file so that it is neither used nor lost."""
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        return path.rename(aside)

    # Reading

    def grids(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/manifest.json"))

    def read_json(self, path: Path) -> dict[str, Any]:
        """The body of a sealed JSON file.

        Raises:
            ValueError: it is not JSON, or its digest is wrong.
        """
        try:
            sealed = json.loads(path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("it is not JSON: cut short, or damaged") from None
        if not isinstance(sealed, dict):
            raise ValueError("it is not a JSON object")
        return unseal(sealed)

    def manifest(self, grid: str) -> dict[str, Any]:
        """{"about", "cells": [{"id", "label", ...}], "skipped": [{"what", "reason"}], "grid"}.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = self.folder(grid) / "manifest.json"
        try:
            manifest = self.read_json(path)
            Manifest.model_validate(manifest)
            return manifest
        except FileNotFoundError:
            raise unknown("results", grid, self.grids(), str(self.root)) from None
        except ValueError as error:
            reason = _first(error) if isinstance(error, ValidationError) else error
            raise UserError(f"{path}: {reason}; `run` writes it anew") from None

    def record(self, grid: str, cell_id: str) -> Record | None:
        """A cell's record, or None where it is not done.

        Raises:
            ValueError: there is one that cannot be used; the message says why.
        """
        path = self.cell(grid, cell_id) / "record.json"
        try:
            body = self.read_json(path)
        except FileNotFoundError:
            return None
        record = parse(Record, body)
        if record.id != cell_id:
            raise ValueError(f"it is the record of {record.id}")
        return record

    def done(self, grid: str, cell_id: str) -> bool:
        try:
            return self.record(grid, cell_id) is not None
        except ValueError:
            return False

    def settled(self, grid: str, cell_id: str) -> bool:
        """Whether the cell is done or has failed."""
        return self.done(grid, cell_id) or self.scratch(grid, cell_id, "failure.json") is not None

    def records(self, grid: str) -> tuple[list[Record], list[Problem]]:
        """All usable records of a grid, in the order of their ids, and what could not be used."""
        records, problems = [], []
        for folder in self._cells(grid):
            try:
                record = self.record(grid, folder.name)
                if record:
                    records.append(record)
            except (ValueError, OSError) as error:
                problems.append(Problem(f"{grid}/{folder.name}/record.json", str(error)))
        return records, problems

    def costs(self, grid: str) -> tuple[list[Cost], list[Problem]]:
        costs, problems = [], []
        for path in sorted((self.folder(grid) / "cost").glob("*.json")):
            try:
                costs.append(parse(Cost, self.read_json(path)))
            except (ValueError, OSError) as error:
                problems.append(Problem(f"{grid}/cost/{path.name}", str(error)))
        return costs, problems

    def curves(self, grid: str, record: Record) -> str:
        """CSV: epoch, lr, seconds, accuracies and one column `loss_<term>` a term.

        Raises:
            DamagedError: the file is missing or not the one that the record names.
        """
        return self._named_by_record(grid, record, "curves.csv", record.curves_sha256).decode()

    def weights(self, grid: str, record: Record) -> bytes:
        """The deployed network's weights, as safetensors wrote them.

        Raises:
            DamagedError: the file is missing or not the one that the record names.
        """
        return self._named_by_record(grid, record, "weights.safetensors", record.weights_sha256)

    def _named_by_record(self, grid: str, record: Record, name: str, sha256: str) -> bytes:
        try:
            raw = (self.cell(grid, record.id) / name).read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise DamagedError(f"{name} is not the one that the record names")
        return raw

    def write_checkpoint(self, grid: str, cell_id: str, raw: bytes) -> None:
        head = hashlib.sha256(raw).hexdigest().encode()
        self.write(self.cell(grid, cell_id) / "checkpoint", head + raw)

    def read_checkpoint(self, grid: str, cell_id: str) -> bytes | None:
        """The last checkpoint; None where there is none. A damaged one is set aside, and the training starts anew."""
        path = self.cell(grid, cell_id) / "checkpoint"
        try:
            whole = path.read_bytes()
        except FileNotFoundError:
            return None
        head, raw = whole[:64], whole[64:]
        if hashlib.sha256(raw).hexdigest().encode() != head:
            self.set_aside(path)
            return None
        return raw

    def scratch(self, grid: str, cell_id: str, name: str) -> dict[str, Any] | None:
        """progress.json or failure.json of a cell; None where absent or unreadable (they are hints)."""
        try:
            return self.read_json(self.cell(grid, cell_id) / name)
        except (ValueError, OSError):
            return None

    def locked(self, grid: str, cell_id: str) -> bool:
        """Whether somebody trains the cell right now."""
        path = self.cell(grid, cell_id) / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except TimeoutError:
            return True
        except OSError:  # a folder that may only be read: nobody can tell from here
            return False

    def find(self, prefix: str) -> tuple[str, str]:
        """(grid, id) of the one cell whose id starts with, or contains, this text.

        Raises:
            UserError: none or several do.
        """
        every = [(path.parent.name, path.name) for grid in self.grids() for path in self._cells(grid)]
        hits = [hit for hit in every if hit[1].startswith(prefix)] or [hit for hit in every if prefix in hit[1]]
        if not hits:
            raise unknown("cell", prefix, {cell_id for _, cell_id in every}, str(self.root))
        names = sorted({cell_id for _, cell_id in hits})
        if len(names) > 1:
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise UserError(f"'{prefix}' names {len(names)} cells: {', '.join(names[:8])}{rest}")
        return hits[0]

    def adopt(self, grid: str, cell_id: str, with_weights: bool) -> bool:
        """Copy a finished cell from another grid of this store, so that it is not trained twice."""
        for path in sorted(self.root.glob(f"*/{cell_id}/record.json")):
            other = path.parent.parent.name
            if other != grid and other == safe(other) and self.unusable(other, cell_id, with_weights) == ("", []):
                self.take_over(self, other, grid, cell_id)
                return True
        return False

    def unusable(self, grid: str, cell_id: str, with_weights: bool) -> tuple[str, list[str]]:
        """(why, files) that keep a cell's results from being used. Weights may be missing, unless `with_weights`."""
        try:
            record = self.record(grid, cell_id)
        except ValueError as error:
            return str(error), ["record.json"]
        if record is None:
            return "", []
        try:
            self.curves(grid, record)
        except DamagedError as error:
            return str(error), ["record.json", "curves.csv"]
        try:
            if with_weights or (self.cell(grid, cell_id) / "weights.safetensors").exists():
                self.weights(grid, record)
        except DamagedError as error:
            return str(error), ["record.json", "weights.safetensors"]
        return "", []

    def take_over(self, source: Store, source_grid: str, grid: str, cell_id: str) -> None:
        """Copy a finished cell's files into a grid of this store."""
        target = self.cell(grid, cell_id)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("curves.csv", "weights.safetensors", "record.json"):  # the record last: it says that the rest is there
            path = source.cell(source_grid, cell_id) / name
            if path.exists():
                scratch = target / f".{name}.copy"
                shutil.copyfile(path, scratch)
                scratch.replace(target / name)

    def clean(self, grid: str, weights: bool) -> int:
        """Remove what finished cells no longer need: checkpoints, damaged files that were set aside, and, if `weights`, the
        weights of cells that teach nobody. Returns the bytes freed."""
        teachers = {cell["id"] for cell in self.manifest(grid)["cells"] if cell.get("teacher")}
        freed = 0
        for folder in self._cells(grid):
            if not self.done(grid, folder.name):
                continue
            unwanted = [*folder.glob("checkpoint*"), *folder.glob("*.damaged-*"), *folder.glob(".*.*")]
            unwanted += [folder / name for name in (*SCRATCH, "lock")]
            if weights and folder.name not in teachers:
                unwanted.append(folder / "weights.safetensors")
            for path in unwanted:
                if path.is_file():
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def _cells(self, grid: str) -> Iterator[Path]:
        for path in sorted(self.folder(grid).iterdir()) if self.folder(grid).is_dir() else []:
            if path.is_dir() and path.name not in OTHER_FOLDERS and path.name == safe(path.name):
                yield path


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """Validate a record or cost.

    Raises:
        ValueError: unknown schema, a missing, unknown or impossible value, or an id that its contents do not give.
    """
    version = body.get("schema_version")
    if version != SCHEMA:
        raise ValueError(f"its schema is version {version}, this program reads {SCHEMA}")
    try:
        parsed = model.model_validate(body)
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    if isinstance(parsed, Record) and (reason := parsed.mismatch()):
        raise ValueError(reason)
    return parsed
