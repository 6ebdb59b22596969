"""What one training leaves behind: its files, and what may be done with them. See `folders.py`. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError
from bench.records import files
from bench.records.correct import unpacked
from bench.records.files import LARGE, MIB, TEXT, Folder
from bench.records.handles import Holder
from bench.records.problems import DamagedError, RefusedError, UnreadableError, reason
from bench.records.record import Record
from bench.records.scratch import FAILURE, SCRATCH, Scratch
from bench.records.sealed import unsealed

if TYPE_CHECKING:
    from pathlib import Path

    from bench.records.folders import GridFolder

Taken = TypeVar("Taken", bytes, str)
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
RECORD, LOCK = "record.json", "lock"
LEFTOVERS = ("checkpoint*", "*.damaged-*", ".*.*")  # patterns of what a finished cell can do without; so it can without SCRATCH


class CellFolder(Scratch):
    """What one training leaves behind, and its scratch files while it goes on."""

    def __init__(self, grid: GridFolder, cell_id: str) -> None:
        self.grid, self.id = grid, cell_id
        self._folder = grid.results.below(grid.name, cell_id)

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
            UnreadableError: it is intact, but of another version or another cell, or the system does not let it be read.
        """
        try:
            return self._parsed(self._folder.read(RECORD))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnreadableError(f"it cannot be read: {reason(error)}") from None

    def _parsed(self, raw: bytes) -> Record:
        record = files.parse(Record, unsealed(raw))
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
            raise UserError(f"{self.id}: {reason(error)}") from None
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
        except ValueError:
            pass
        return None

    def settled(self) -> bool:
        """Whether nothing is left to train: the cell is done, has failed, or has a record that this version cannot read."""
        try:
            there = self._folder.which(RECORD, FAILURE)
            if RECORD in there and self.record() is not None:
                return True
        except (UnreadableError, OSError):
            return True
        except ValueError:
            pass
        return FAILURE in there and self.failure() is not None

    def state(self) -> State:
        try:
            there = self._folder.which(RECORD, LOCK, FAILURE)
            if RECORD in there and self.record():
                return "done"
        except (UnreadableError, OSError):
            return "unreadable"
        except ValueError:
            pass
        if LOCK in there and self.locked():
            return "running"
        return "failed" if FAILURE in there and self.failure() else "missing"

    def lock(self) -> AbstractContextManager[None]:
        """Held by whoever trains the cell; the system frees it when its holder dies, however it dies."""
        return self._folder.lock(LOCK)

    def locked(self) -> bool:
        """Whether somebody trains the cell right now."""
        return self._folder.locked(LOCK)

    def holder(self) -> Holder | None:
        """Who trains the cell, or did so last."""
        return self._folder.holder(LOCK)

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
        return self._same(kept, record, lambda: self._folder.read(kept.name, _most(kept, record)))

    def check_kept(self, kept: Kept, record: Record) -> None:
        """The same, without the file in memory."""
        self._same(kept, record, lambda: self._folder.digest(kept.name, _most(kept, record)))

    def _same(self, kept: Kept, record: Record, take: Callable[[], Taken]) -> Taken:
        try:
            found = take()
        except FileNotFoundError:
            raise DamagedError(f"{kept.name} is missing") from None
        except RefusedError as error:
            raise DamagedError(f"{kept.name}: {error.reason}") from None
        digest = found if isinstance(found, str) else hashlib.sha256(found).hexdigest()
        if digest != getattr(record, kept.digest_field):
            raise DamagedError(f"{kept.name} is not the one that the record names")
        return found

    def has(self, kept: Kept) -> bool:
        return self._folder.has(kept.name)

    def must_have(self, kept: Kept, record: Record) -> bool:
        """Whether the results cannot be used without this file."""
        return not kept.optional and getattr(record, kept.digest_field) is not None

    def write_curves(self, text: str) -> str:
        """Returns the SHA-256, for the record; so do `write_correct` and `write_weights`."""
        return self._folder.write(CURVES.name, text)

    def write_correct(self, raw: bytes) -> str:
        """See `bench.records.correct`."""
        return self._folder.write(CORRECT.name, raw)

    def write_weights(self, raw: bytes) -> str:
        return self._folder.write(WEIGHTS.name, raw)

    def write_record(self, record: Record) -> None:
        """The last act of a training: from here on the cell is done, and its scratch files go."""
        self._folder.write_json(RECORD, record)
        for name in SCRATCH:
            self._folder.remove(name)

    def unusable(self, with_weights: bool) -> tuple[str, list[str]] | None:
        """(why, names of files) that are damaged, so that the results cannot be used; None where nothing is.

        A record that this version cannot read is not damaged. Weights may be missing, unless `with_weights`.
        """
        try:
            record = self.record()
        except UnreadableError:
            return None
        except ValueError as error:
            return reason(error), [RECORD]
        if record is None:
            return None
        for kept in KEPT:
            try:
                if self.must_have(kept, record) or self.has(kept) or (with_weights and kept is WEIGHTS):
                    self.check_kept(kept, record)
            except OSError:  # nobody can know
                return None
            except DamagedError as error:
                return str(error), [RECORD, kept.name]
        return None

    def set_aside(self, *names: str) -> list[str]:
        """Rename files of this folder so that they are neither used nor lost; returns the ones that there were."""
        found = [name for name in names if self._folder.has(name)]
        for name in found:
            self._folder.aside(name)
        return [self.place(name) for name in found]

    def supersede(self) -> None:
        """Make way for the training that replaces this one: the weights go, all else is moved; the record first, which
        means done."""
        folder = self.grid.superseded_folder(self.id)
        for name in (RECORD, CURVES.name, CORRECT.name):
            self._folder.move(name, folder, name)
        self._folder.remove(WEIGHTS.name)
        self.drop_checkpoint()

    def finished_weights(self) -> tuple[Record, bytes]:
        """The record and the weights of the finished cell.

        Raises:
            UserError: the cell is not finished, or its files are damaged.
        """
        record = self.finished_record()
        try:
            return record, self.weights(record)
        except ValueError as error:
            raise UserError(f"{self.id}: {error}") from None

    def export(self, target: Path) -> Path:
        """Write the weights of the finished cell to a file; returns its path.

        Raises:
            UserError: the cell is not finished, or its files are damaged.
            OSError: the file cannot be written.
        """
        raw = self.finished_weights()[1]
        self.check_target(target)
        files.write(target, raw)
        return target

    def check_target(self, target: Path) -> None:
        """
        Raises:
            UserError: an export would come to lie among the files of results.
        """
        results = self.grid.results
        way = Folder(target.parent).way_from(results.place)
        if way and way[0] in (*results.grids(), "teachers"):
            raise UserError(f"--to: {target} lies among the files of results; name another place")

    def copy_from(self, other: CellFolder) -> None:
        """Copy a finished cell's files, each checked, the record last, since it means that the rest is there.

        Raises:
            DamagedError, UnreadableError: a file cannot be used; the cell is not done here then.
            TimeoutError: another process trains the cell here.
            OSError: a file cannot be read or written.
        """
        raw = other._folder.read(RECORD)
        record = self._parsed(raw)
        with self.lock():
            if self.done():
                return  # another was faster: one record a cell
            for kept in KEPT:
                if self.must_have(kept, record) or (kept.optional and other.has(kept)):
                    self._folder.write(kept.name, other.kept(kept, record))
            self._folder.write(RECORD, raw)

    def names(self, pattern: str) -> list[str]:
        """What the folder holds under names of a pattern, folders left out; nothing where it cannot be read."""
        try:
            entries = self._folder.entries()
        except (ValueError, OSError):
            return []
        return [entry.name for entry in entries if entry.kind != "folder" and fnmatchcase(entry.name, pattern)]

    def clean(self, weights: bool) -> int:
        """Remove scratch files, and the weights if asked; returns the bytes freed."""
        patterns = (*LEFTOVERS, *SCRATCH, LOCK, *[WEIGHTS.name] * weights)
        unwanted = {name for pattern in patterns for name in self.names(pattern)}
        return sum(self._folder.remove(name) for name in sorted(unwanted))


def _most(kept: Kept, record: Record) -> int:
    """The bytes that a file beside a record may have."""
    return min(LARGE, 64 * MIB + 16 * record.parameters.deployed) if kept is WEIGHTS else TEXT
