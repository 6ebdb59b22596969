"""Operations on the handle of a folder, of which none follows a link. Only `bench.records.files` calls them. No torch here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from bench.records.problems import BarredError, RefusedError

MIB, GIB = 2**20, 2**30
LINKS = "nothing below a results folder is reached through links; name the folder that holds it with --results, or move it here"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
held: set[int] = set()  # files that this process has locked


class Entry(NamedTuple):
    """What a folder holds under a name."""

    name: str
    kind: str  # "file", "folder", "link", or "device" for all else


class Holder(NamedTuple):
    """Who holds a lock."""

    process: int
    host: str
    since: str  # ISO 8601, UTC
    job: str = ""  # on a cluster, as its queue names it

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"

    @classmethod
    def now(cls) -> Holder:
        """This process, from now on."""
        array, job = (os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID"))
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else job
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), job)


def misnamed(name: str) -> bool:
    """Whether it names something else than what stands in a folder."""
    return "/" in name or "\0" in name or name in (".", "..")


def walk(root: str, names: Sequence[str], place: str, create: bool = False, mode: int = 0o755) -> int:
    """A handle of the folder to which the names lead down from the root; folders are made where `create`.

    Args:
        root: its absolute path, which may be a link.
        place: the root as messages name it.

    Raises:
        BarredError: a link, or no folder, stands on the way.
    """
    if create:
        with contextlib.suppress(FileExistsError):  # then it is no folder, which is named when it is opened
            _make(root)
    try:
        handle = os.open(root, _FOLDER)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BarredError(f"{place} is a link that leads to itself") from None
    for number, name in enumerate(names):
        try:
            inner = _step(handle, name, create, mode)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            kind = _word(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
            why = LINKS if kind == "a link" else "a folder belongs there"
            raise BarredError(f"{os.path.join(place, *names[: number + 1])} is {kind}: {why}") from None
        finally:
            os.close(handle)
        handle = inner
    return handle


def _make(root: str) -> None:
    """Make a root and what it lacks above it, each so that it outlives a power cut."""
    grown, above = [], root
    while not os.path.isdir(above):
        above = os.path.dirname(above)
        grown.append(above)
    os.makedirs(root, exist_ok=True)
    for path in grown:
        handle = os.open(path, _FOLDER)
        try:
            sync_folder(handle)
        finally:
            os.close(handle)


def _step(handle: int, name: str, create: bool, mode: int) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=handle)
            sync_folder(handle)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)


def _word(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "a file"
    return "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "a device, a pipe or a socket"


def kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir(follow_symlinks=False) else "file" if entry.is_file(follow_symlinks=False) else "device"


def regular(found: os.stat_result, place: str, limit: int | None = None) -> os.stat_result:
    """What was found at a place, if it is a regular file of at most `limit` bytes.

    Raises:
        RefusedError: it is none.
    """
    if not stat.S_ISREG(found.st_mode):
        word = _word(found.st_mode)
        raise RefusedError(place, f"it is a link: {LINKS}" if word == "a link" else f"it is {word}")
    if limit is not None and found.st_size > limit:
        raise RefusedError(place, f"it has {found.st_size / MIB:,.0f} MiB, more than the {limit / MIB:,.0f} that it may have")
    return found


def check_replaceable(handle: int, name: str, place: str, links: bool = True) -> None:
    """Before a file takes this place: what stands there, if anything, must be a file or a link, or a folder, which stays.

    Args:
        links: whether a link may lead to what is no file.

    Raises:
        RefusedError: it is a device, a pipe or a socket, or a link to what is no file.
    """
    try:
        found = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
        if stat.S_ISLNK(found) and not links:
            if os.readlink(name, dir_fd=handle).startswith("/proc/"):  # /dev/stdout and its like
                raise RefusedError(place, "it is the system's link to an open file; name a file")
            found = os.stat(name, dir_fd=handle).st_mode
            if not stat.S_ISREG(found):
                raise RefusedError(place, f"it is a link to {_word(found)}; name a file")
    except FileNotFoundError:
        return
    if (word := _word(found)) not in ("a file", "a folder", "a link"):
        raise RefusedError(place, f"it is {word}; name a file")


def read(file: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := os.read(file, min(size, GIB))):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def scratch(name: str) -> str:
    return f".{name[:200]}.{secrets.token_hex(4)}"


def fill(handle: int, name: str, raw: bytes, durable: bool) -> None:
    """Write a new file."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=handle)
    try:
        rest = memoryview(raw)
        while rest:
            rest = rest[os.write(file, rest) :]
        if durable:
            _sync(file)
    finally:
        os.close(file)


def _sync(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync leaves the content in the disk's own cache
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def sync_folder(handle: int) -> None:
    """Have a rename outlive a power cut, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def unlink(handle: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=handle)


def sign(file: int, holder: Holder | None) -> None:
    """Write into a lock's file who holds it. The lock holds all the same where that fails, such as on a full disk."""
    with contextlib.suppress(OSError):
        if os.fstat(file).st_nlink == 1:  # else the file has another name as well, which is not ours
            os.ftruncate(file, 0)
            if holder:
                os.pwrite(file, json.dumps(holder._asdict()).encode(), 0)


def _forget_locks() -> None:
    for file in held:
        with contextlib.suppress(OSError):
            os.close(file)
    held.clear()


os.register_at_fork(after_in_child=_forget_locks)  # a child that outlives its parent must not keep its locks
