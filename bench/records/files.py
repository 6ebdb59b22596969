"""The gate: every file below a results folder is read and written through `Folder`, and nothing else opens one. No torch.

A results folder may be a stranger's. Each folder on the way to a file is opened from the one above it, and a link is never
followed, neither on the way nor at its end. What is read or locked is a regular file, up to a limit. What is written stands
complete beside its place first and is then renamed into it, so that a reader sees all of it or none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from bench.records import handles
from bench.records.pacing import PATIENCE_S
from bench.records.problems import RefusedError, UnreadableError
from bench.records.record import SCHEMA, Cost, Record, seal
from bench.records.sealed import unsealed
from bench.records.teacher import TeacherAccuracy
from bench.texts import encodable, first, one_line

Model = TypeVar("Model", Record, Cost, TeacherAccuracy)
Result = TypeVar("Result")

KIB, MIB, GIB = 2**10, 2**20, 2**30
SMALL = 16 * MIB  # bytes that are read at most of a file of which nothing else is known: records, costs, hints
TEXT = 256 * MIB  # of manifests, curves and logs
LARGE = 16 * GIB  # of weights and checkpoints
TRIES = 3  # looks at one file
PAUSE_S = 0.02  # between two looks at a lock


class Folder:
    """A folder by its root, which the user gave, and the names that lead down from there.

    The root may be a link. Handles are opened for each operation. Nothing need exist before it is written.

    Raises, wherever a file is touched:
        FileNotFoundError: there is nothing.
        RefusedError, BarredError: see there.
        OSError: the system refuses; its `filename` is the path.
    """

    def __init__(self, root: str | Path, *names: str) -> None:
        self.root, self.names = str(root), names
        self._real = os.path.realpath(root)

    def __str__(self) -> str:
        return os.path.join(self.root, *self.names)

    def _place(self, name: str) -> str:
        return os.path.join(str(self), name) if name else str(self)

    def at(self, *names: str) -> Folder:
        """A folder below this one."""
        for name in names:
            if not name or handles.misnamed(name):
                raise RefusedError(str(self), f"'{name[:80]}' cannot name a folder")
        found = object.__new__(Folder)
        found.root, found.names, found._real = self.root, (*self.names, *names), self._real
        return found

    def way_from(self, other: Folder) -> tuple[str, ...] | None:
        """The names that lead down to it from another folder, where links lead if there are any; None: it lies elsewhere."""
        place, above = (os.path.realpath(Path(each._real, *each.names)) for each in (self, other))
        return Path(place).relative_to(above).parts if Path(place).is_relative_to(above) else None

    # Looking

    def entries(self) -> list[handles.Entry]:
        """What is in the folder, by name; empty where there is none."""

        def listed() -> list[handles.Entry]:
            with self.opened("") as handle, os.scandir(handle) as found:
                return sorted(handles.Entry(each.name, handles.kind(each)) for each in found)

        try:
            return _again(listed)
        except FileNotFoundError:
            return []

    def files(self, suffix: str = "") -> list[str]:
        """Names of its regular files that end so."""
        return [entry.name for entry in self.entries() if entry.kind == "file" and entry.name.endswith(suffix)]

    def has(self, name: str) -> bool:
        """Whether something stands there, whatever it is."""
        return bool(self.which(name))

    def which(self, *names: str) -> set[str]:
        """Those of the names under which something stands, found by one walk to the folder: for looks at many folders."""

        def looked() -> set[str]:
            found = set()
            with self.opened("") as handle:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.stat(name, dir_fd=handle, follow_symlinks=False)
                        found.add(name)
            return found

        try:
            return _again(looked)
        except FileNotFoundError:
            return set()

    # Reading

    def read(self, name: str, limit: int = SMALL) -> bytes:
        """A regular file's content, of at most `limit` bytes."""
        return _again(lambda: self._taken(name, handles.read, limit))

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a file; nothing where there is no regular one."""
        try:
            return _again(lambda: self._taken(name, lambda file, size: os.read(file, count), LARGE))
        except (FileNotFoundError, RefusedError):
            return b""

    def digest(self, name: str, limit: int = LARGE) -> str:
        """SHA-256 of a file's content, which is never in memory as a whole."""

        def summed(file: int, size: int) -> str:
            found = hashlib.sha256()
            while piece := os.read(file, MIB):
                found.update(piece)
            return found.hexdigest()

        return _again(lambda: self._taken(name, summed, limit))

    def read_json(self, name: str, limit: int = SMALL) -> dict[str, Any]:
        """The body of a sealed JSON file.

        Raises:
            DamagedError: it is not JSON, or its digest is wrong.
        """
        return unsealed(self.read(name, limit))

    def read_hint(self, name: str, limit: int = SMALL) -> dict[str, Any] | None:
        """The body of a sealed JSON file that nothing depends on; None where it is absent, damaged or out of reach."""
        try:
            return self.read_json(name, limit)
        except (ValueError, OSError):
            return None

    def holder(self, name: str) -> handles.Holder | None:
        """Who held a lock last, as its file has it."""
        try:
            found = encodable(json.loads(self.read(name, KIB)))
            texts = (str(found.get(key, ""))[:80] for key in ("host", "since", "job"))
            return handles.Holder(int(found["process"]), *texts)
        except (ValueError, OSError, LookupError, TypeError, AttributeError):
            return None

    # Writing

    def write(self, name: str, content: bytes | str, durable: bool = True) -> str:
        """Write a complete file beside its place and rename it into it; returns the SHA-256 of its content.

        Args:
            durable: whether it must outlive a power cut; hints need not.
        """
        raw = content.encode() if isinstance(content, str) else content
        with self.opened(name, create=True) as handle:
            scratch = handles.scratch(name)
            try:
                handles.fill(handle, scratch, raw, durable)
                os.rename(scratch, name, src_dir_fd=handle, dst_dir_fd=handle)
                if durable:
                    handles.sync_folder(handle)
            except BaseException:
                handles.unlink(handle, scratch)
                raise
        return hashlib.sha256(raw).hexdigest()

    def write_json(self, name: str, body: dict[str, Any] | BaseModel, durable: bool = True) -> None:
        """Write sealed JSON: see `bench.records.record.seal`."""
        plain = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
        self.write(name, json.dumps(seal(plain), indent=1, allow_nan=False) + "\n", durable)

    def append(self, name: str) -> TextIO:
        """A text file to write at its end; the caller closes it. One that has other names as well is copied first."""
        with contextlib.suppress(FileNotFoundError):
            with self.opened(name) as handle:
                links = handles.regular(os.stat(name, dir_fd=handle, follow_symlinks=False), self._place(name)).st_nlink
            if links > 1:
                self.write(name, self.read(name, LARGE))
        with self.opened(name, create=True) as handle:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(name, flags, 0o644, dir_fd=handle)
        try:
            handles.regular(os.fstat(file), self._place(name))
            return os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace")
        except BaseException:
            os.close(file)
            raise

    def remove(self, name: str) -> int:
        """Remove what stands there, a link itself and not its target; returns the bytes of a file, 0 where nothing was."""
        try:
            with self.opened(name) as handle:
                size = os.stat(name, dir_fd=handle, follow_symlinks=False).st_size
                os.unlink(name, dir_fd=handle)
                return size
        except FileNotFoundError:
            return 0

    def move(self, name: str, to: Folder, new: str) -> bool:
        """Rename a file into another folder; returns whether there was one."""
        try:
            with self.opened(name) as here, to.opened(new, create=True) as there:
                os.rename(name, new, src_dir_fd=here, dst_dir_fd=there)
                handles.sync_folder(there)
                handles.sync_folder(here)
                return True
        except FileNotFoundError:
            return False

    def aside(self, name: str) -> str:
        """Rename what is damaged so that it is neither used nor lost; returns its new name."""
        number = 1
        while self.has(new := f"{name}.damaged-{number}"):
            number += 1
        self.move(name, self, new)
        return new

    def path(self) -> Path:
        """The folder, for a library that writes files of its own; made for this user alone, and never read back."""
        with self.opened("", create=True, mode=0o700):
            return Path(self._real, *self.names)

    # Locks

    @contextlib.contextmanager
    def lock(self, name: str, timeout_s: float = 0.2) -> Iterator[None]:
        """Hold a lock, which the system frees when its holder dies, however it dies. Who waits for long says so on stderr.

        Args:
            timeout_s: not 0: `locked` holds it for an instant.

        Raises:
            TimeoutError: another process holds it.
        """
        started, silent = time.monotonic(), True
        while (file := self._try_lock(name, create=True)) is None:
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                raise TimeoutError(self._held(name))
            if silent and waited_s > PATIENCE_S:
                silent = False
                print(one_line(f"waiting for {self._held(name)}"), file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)
        handles.held.add(file)
        try:
            handles.sign(file, handles.Holder.now())
            yield
        finally:
            handles.sign(file, None)
            handles.held.discard(file)
            try:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a process was forked meanwhile
            finally:
                os.close(file)

    def _held(self, name: str) -> str:
        return f"{self}/{name}: held by {self.holder(name) or 'another process'}"

    def locked(self, name: str) -> bool:
        """Whether somebody holds a lock right now. Where the folder may only be read, nobody can know."""
        try:
            if (file := self._try_lock(name, create=False)) is not None:
                os.close(file)
            return file is None
        except (OSError, ValueError):
            return False

    def _try_lock(self, name: str, create: bool) -> int | None:
        """A locked file, or None where another holds the lock."""
        with self.opened(name, create) as handle:
            with contextlib.suppress(FileNotFoundError):
                handles.regular(os.stat(name, dir_fd=handle, follow_symlinks=False), self._place(name))
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
            file = os.open(name, flags, 0o644, dir_fd=handle)
        try:
            handles.regular(os.fstat(file), self._place(name))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:  # else it was removed meanwhile, and another may lock its successor
                return file
        except BlockingIOError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None

    @contextlib.contextmanager
    def opened(self, name: str, create: bool = False, mode: int = 0o755) -> Iterator[int]:
        """A handle of this folder for the time of one operation on `name`, whose errors name the whole path."""
        if handles.misnamed(name):
            raise RefusedError(str(self), f"'{name[:80]}' cannot name a file")
        try:
            handle = handles.walk(self._real, self.names, self.root, create, mode)
            try:
                yield handle
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link took the place of a file after it was looked at
                raise RefusedError(self._place(name), f"it is a link: {handles.LINKS}") from None
            error.filename = self._place(name)
            del error.filename2  # None would be printed as a second name
            raise

    def _taken(self, name: str, take: Callable[[int, int], Result], limit: int) -> Result:
        """What is made of a regular file and its size."""
        with self.opened(name) as handle:
            handles.regular(os.stat(name, dir_fd=handle, follow_symlinks=False), self._place(name), limit)
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
            try:
                return take(file, handles.regular(os.fstat(file), self._place(name), limit).st_size)
            finally:
                os.close(file)


def _again(look: Callable[[], Result]) -> Result:
    """What a look gives: a further one where another machine has renamed the file meanwhile, or a disk has given up once."""
    for _ in range(TRIES - 1):
        try:
            return look()
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.EIO):
                raise
    return look()


# Contents


def write(path: Path, content: bytes | str) -> str:
    """Write a file at a place that the user gave; see `Folder.write`.

    Raises:
        RefusedError: a device, a pipe or a socket stands there, or a link to what is no file; or it names a folder.
    """
    if path.name in ("", ".."):
        raise RefusedError(str(path), "it is a folder; name a file")
    folder = Folder(path.parent)
    with folder.opened(path.name, create=True) as handle:
        handles.check_replaceable(handle, path.name, str(path), links=False)
    return folder.write(path.name, content)


def write_json(path: Path, body: dict[str, Any] | BaseModel) -> None:
    """Likewise; see `Folder.write_json`."""
    Folder(path.parent).write_json(path.name, body)


def read_json(path: Path) -> dict[str, Any]:
    """See `Folder.read_json`."""
    return Folder(path.parent).read_json(path.name)


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """Validate the body of a record or cost.

    Raises:
        UnreadableError: unknown schema, a missing, unknown or impossible value, or an id that its contents do not give.
    """
    version = body.get("schema_version")
    if version != SCHEMA:
        raise other_version(f"its schema is version {str(version)[:80]}, this version reads {SCHEMA}")
    try:
        parsed = model.model_validate(body)
    except ValidationError as error:
        raise other_version(first(error)) from None
    if isinstance(parsed, Record) and (mismatch := parsed.mismatch()):
        raise other_version(mismatch)
    return parsed


def other_version(why: str) -> UnreadableError:
    return UnreadableError(f"this version cannot read it and leaves it alone: {why}")
