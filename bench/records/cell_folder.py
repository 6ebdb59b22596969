"""What one training leaves behind: its files, and what may be done with them. See `folders.py`. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bench.errors import UserError
from bench.records import files
from bench.records.correct import unpacked
from bench.records.files import DamagedError, UnreadableError
from bench.records.record import Record

if TYPE_CHECKING:
    from pathlib import Path

    from bench.records.folders import GridFolder

State = Literal["done", "running", "failed", "missing", "unreadable"]


class Kept(NamedTuple):
    """A file that a finished cell keeps beside its record, which names its digest. Records of former versions name fewer."""

    name: str
    digest_field: str  # of the record
    optional: bool  # whether the results can be used without it


CURVES = Kept("curves.csv", "curves_sha256", optional=False)
CORRECT = Kept("correct.bin", "correct_sha256", optional=False)
WEIGHTS = Kept("weights.safetensors", "weights_sha256", optional=True)
KEPT = (CURVES, CORRECT, WEIGHTS)
RECORD, CHECKPOINT = "record.json", "checkpoint"
SCRATCH = (CHECKPOINT, "progress.json", "failure.json", "attempts.json", "eager.json")  # of a cell, until it is done
LEFTOVERS = ("checkpoint*", "*.damaged-*", ".*.*")  # patterns of what a finished cell can do without; so it can without SCRATCH


class CellFolder:
    """What one training leaves behind, and its scratch files while it goes on."""

    def __init__(self, grid: GridFolder, cell_id: str) -> None:
        self.grid, self.id = grid, cell_id
        self._path = grid.results.inside(grid.results.root / grid.name / cell_id)

    def __repr__(self) -> str:
        return f"{self.grid!r}.cell({self.id!r})"

    def place(self, name: str = "") -> str:
        """A file of this folder as messages name it: relative to the results folder."""
        return "/".join(filter(None, [self.grid.name, self.id, name]))

    # State

    def record(self) -> Record | None:
        """The cell's record, or None where it is not done.

        Raises:
            DamagedError: the record was edited by hand, or cut short.
            UnreadableError: it is intact, but of another version, or of another cell.
        """
        try:
            body = files.read_json(self._path / RECORD)
        except FileNotFoundError:
            return None
        record = files.parse(Record, body)
        if record.id != self.id:
            raise UnreadableError(f"it is the record of {record.id}")
        return record

    def finished_record(self) -> Record:
        """The cell's record, for a user who names the cell.

        Raises:
            UserError: the cell is not done, or its record cannot be used.
        """
        try:
            record = self.record()
        except ValueError as error:
            raise UserError(f"{self.id}: {error}") from None
        if record is None:
            raise UserError(f"{self.id} is not finished")
        return record

    def done(self) -> bool:
        try:
            return self.record() is not None
        except ValueError:
            return False

    def unreadable(self) -> str | None:
        """Why this version cannot read an intact record, or None."""
        try:
            self.record()
        except UnreadableError as error:
            return str(error)
        except (ValueError, OSError):
            pass
        return None

    def settled(self) -> bool:
        """Whether nothing is left to train: the cell is done, has failed, or has a record that this version cannot read."""
        try:
            return self.record() is not None or self.failure() is not None
        except UnreadableError:
            return True
        except ValueError:
            return self.failure() is not None

    def state(self) -> State:
        try:
            if self.record():
                return "done"
        except UnreadableError:
            return "unreadable"
        except ValueError:
            pass
        if self.locked():
            return "running"
        return "failed" if self.failure() else "missing"

    def lock(self) -> FileLock:
        """Held by whoever trains the cell; the system frees it when its holder dies, however it dies."""
        self._path.mkdir(parents=True, exist_ok=True)
        return FileLock(self._path / "lock", timeout=0.2)  # not 0: `locked` holds it for an instant

    def locked(self) -> bool:
        """Whether somebody trains the cell right now."""
        path = self._path / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except TimeoutError:
            return True
        except OSError:  # a folder that may only be read: nobody can know from here
            return False

    # Results

    def curves(self, record: Record) -> str:
        """CSV: epoch, lr, seconds, accuracies and one column `loss_<term>` a term.

        Raises:
            DamagedError: the file is missing or not the one that the record names.
        """
        return self.kept(CURVES, record).decode()

    def weights(self, record: Record) -> bytes:
        """The deployed network's weights, as safetensors wrote them.

        Raises:
            DamagedError: the file is missing or not the one that the record names.
        """
        return self.kept(WEIGHTS, record)

    def correct(self, record: Record) -> NDArray[np.bool_] | None:
        """Which test images the network classified correctly after the last epoch, in their order; None in older records.

        Raises:
            DamagedError: the file is missing, not the one that the record names, or contradicts the record.
        """
        if record.correct_sha256 is None:
            return None
        try:
            return unpacked(self.kept(CORRECT, record), record.test_samples, record.accuracies.last.top1)
        except ValueError as error:
            raise DamagedError(str(error)) from None

    def kept(self, kept: Kept, record: Record) -> bytes:
        """A file beside the record.

        Raises:
            DamagedError: the file is missing or not the one that the record names.
        """
        try:
            raw = (self._path / kept.name).read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{kept.name} is missing") from None
        if hashlib.sha256(raw).hexdigest() != getattr(record, kept.digest_field):
            raise DamagedError(f"{kept.name} is not the one that the record names")
        return raw

    def has(self, kept: Kept) -> bool:
        return (self._path / kept.name).exists()

    def must_have(self, kept: Kept, record: Record) -> bool:
        """Whether the results cannot be used without this file."""
        return not kept.optional and getattr(record, kept.digest_field) is not None

    def write_curves(self, text: str) -> str:
        """Returns the SHA-256, for the record; so do `write_correct` and `write_weights`."""
        return files.write(self._path / CURVES.name, text)

    def write_correct(self, raw: bytes) -> str:
        """See `bench.records.correct`."""
        return files.write(self._path / CORRECT.name, raw)

    def write_weights(self, raw: bytes) -> str:
        return files.write(self._path / WEIGHTS.name, raw)

    def write_record(self, record: Record) -> None:
        """The last act of a training: from here on the cell is done, and its scratch files go."""
        files.write_json(self._path / RECORD, record)
        for name in SCRATCH:
            (self._path / name).unlink(missing_ok=True)

    def unusable(self, with_weights: bool) -> tuple[str, list[str]] | None:
        """(why, names of files) that are damaged, so that the results cannot be used; None where nothing is.

        A record that this version cannot read is not damaged. Weights may be missing, unless `with_weights`.
        """
        try:
            record = self.record()
        except UnreadableError:
            return None
        except ValueError as error:
            return str(error), [RECORD]
        if record is None:
            return None
        for kept in KEPT:
            try:
                if self.must_have(kept, record) or self.has(kept) or (with_weights and kept is WEIGHTS):
                    self.kept(kept, record)
            except DamagedError as error:
                return str(error), [RECORD, kept.name]
        return None

    def set_aside(self, *names: str) -> list[str]:
        """Rename files of this folder so that they are neither used nor lost; returns the ones that there were."""
        found = [path for path in (self._path / name for name in names) if path.exists()]
        for path in found:
            files.set_aside(path)
        return [self.place(path.name) for path in found]

    def supersede(self) -> None:
        """Make way for the training that replaces this one: the weights go, all else is moved; the record first, which
        means done."""
        folder = self.grid.superseded_folder(self.id)
        for name in (RECORD, CURVES.name, CORRECT.name):
            with contextlib.suppress(FileNotFoundError):
                (self._path / name).rename(folder / name)
        (self._path / WEIGHTS.name).unlink(missing_ok=True)
        self.drop_checkpoint()

    def finished_weights(self) -> tuple[Record, bytes]:
        """The record and the weights of the finished cell.

        Raises:
            UserError: the cell is not finished, or its files are damaged.
        """
        try:
            record = self.record()
            if record is None:
                raise UserError(f"{self.id} is not finished")
            return record, self.weights(record)
        except ValueError as error:
            raise UserError(f"{self.id}: {error}") from None

    def export(self, target: Path) -> Path:
        """Write the weights of the finished cell to a file; returns its path.

        Raises:
            UserError: the cell is not finished, or its files are damaged.
            OSError: the file cannot be written.
        """
        files.write(target, self.finished_weights()[1])
        return target

    def copy_from(self, other: CellFolder) -> None:
        """Copy a finished cell's files, the record last, since it means that the rest is there."""
        self._path.mkdir(parents=True, exist_ok=True)
        for name in [*(kept.name for kept in KEPT), RECORD]:
            if (other._path / name).exists():
                files.copy(other._path / name, self._path / name)

    def clean(self, weights: bool) -> int:
        """Remove scratch files, and the weights if asked; returns the bytes freed."""
        unwanted = {path for pattern in LEFTOVERS for path in self._path.glob(pattern)}
        unwanted |= {self._path / name for name in (*SCRATCH, "lock", *[WEIGHTS.name] * weights)}
        freed = 0
        for path in unwanted:
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
        return freed

    # Scratch files of a training

    def write_checkpoint(self, raw: bytes) -> None:
        files.write(self._path / CHECKPOINT, hashlib.sha256(raw).hexdigest().encode() + raw)

    def read_checkpoint(self) -> bytes | None:
        """The last checkpoint; None where there is none. A damaged one is set aside, and the training starts anew."""
        try:
            content = (self._path / CHECKPOINT).read_bytes()
        except FileNotFoundError:
            return None
        head, raw = content[:64], content[64:]
        if hashlib.sha256(raw).hexdigest().encode() != head:
            self.set_aside_checkpoint()
            return None
        return raw

    def set_aside_checkpoint(self) -> None:
        files.set_aside(self._path / CHECKPOINT)

    def drop_checkpoint(self) -> None:
        (self._path / CHECKPOINT).unlink(missing_ok=True)

    def progress(self) -> dict[str, Any] | None:
        """What a training wrote last of how far it is; None where absent or damaged: it is a hint, as a failure is."""
        return files.read_hint(self._path / "progress.json")

    def write_progress(self, progress: dict[str, Any]) -> None:
        files.write_json(self._path / "progress.json", progress)

    def failure(self) -> dict[str, Any] | None:
        """{"error", "trace", "when", "again"} of the last failure, or None."""
        return files.read_hint(self._path / "failure.json")

    def write_failure(self, error: str, trace: str = "", again: bool = False) -> None:
        """Leave a trace in the place of a record. `again`: the next `run` tries without being asked to."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        body = {"error": error, "trace": trace, "when": when, "again": again}
        files.write_json(self._path / "failure.json", body)
        self.end_attempts()

    def clear_failure(self) -> None:
        (self._path / "failure.json").unlink(missing_ok=True)

    def begin_attempt(self) -> int:
        """Count the workers that began this cell since its last checkpoint, this one included."""
        checkpoint = self._path / CHECKPOINT
        head = None
        if checkpoint.exists():
            with checkpoint.open("rb") as file:
                head = file.read(64).hex()
        last = files.read_hint(self._path / "attempts.json") or {}
        before = last.get("attempts") if last.get("checkpoint") == head else 0
        attempts = (before if isinstance(before, int) else 0) + 1
        files.write_json(self._path / "attempts.json", {"attempts": attempts, "checkpoint": head})
        return attempts

    def end_attempts(self) -> None:
        (self._path / "attempts.json").unlink(missing_ok=True)

    def write_eager(self, reason: str) -> None:
        """Have the attempts that follow take their steps one by one."""
        files.write_json(self._path / "eager.json", {"reason": reason})

    def eager_reason(self) -> str | None:
        """Why this cell's steps are not to be recorded, or None."""
        reason = (files.read_hint(self._path / "eager.json") or {}).get("reason")
        return reason if isinstance(reason, str) else None

    def log_handler(self) -> logging.Handler:
        """Appends to the cell's log; the caller closes it."""
        handler = logging.FileHandler(self._path / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        return handler

    def log(self) -> str | None:
        path = self._path / "log.txt"
        return path.read_text() if path.exists() else None

    def visual_folder(self) -> Path:
        """For what mmengine's visualizer backends write."""
        return self._path / "visual"
