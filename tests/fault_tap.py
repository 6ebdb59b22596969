"""Counts each call of the gate (`bench.records.files`) to the system, and lets one of them fail, or all from one on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.records import batch, files, handles

READS = ("open", "stat", "fstat", "read", "scandir")
WRITES = ("create", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir", "makedirs")
NEED_ROOM = ("create", "write", "pwrite", "mkdir", "makedirs")
CODES = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "ESTALE": errno.ESTALE,
    "ENOLCK": errno.ENOLCK,
    "disk full from there on": errno.ENOSPC,  # whatever needs room fails
    "file broken from there on": errno.EIO,  # the same call on a file of the same name fails
    "disk dead from there on": errno.EIO,  # whatever is called fails
}
GATE = (files.__file__, handles.__file__, batch.__file__, contextlib.__file__, __file__)
CELL = re.compile(r"^[\w.-]+-s\d+-[0-9a-f]{12}$")
SCRATCH = re.compile(r"^\.(.+)\.[0-9a-f]{8}$")
OF_MANY = re.compile(r"^(\d\d-|[0-9a-f]{12}|(summary|teachers)\.).*(\.\w+)$")  # tables, figures, costs


class Point(NamedTuple):
    """A call of the gate to the system."""

    number: int  # from 0
    call: str
    caller: str  # the function that has passed the gate
    name: str = ""  # of the file, see `plain`

    @property
    def key(self) -> tuple[str, str, str]:
        return self.caller, self.call, self.name

    def kinds(self) -> tuple[str, ...]:
        """What may go wrong there."""
        if self.call == "flock":
            return ("kill", "ENOLCK")
        if self.call not in WRITES:
            return ("kill", "EIO", "ESTALE", "file broken from there on", "disk dead from there on")
        found = ("kill", "kill after", "ENOSPC", "EIO", "disk dead from there on")
        return (*found, *["torn"] * (self.call == "write"), *["disk full from there on"] * (self.call in NEED_ROOM))


def plain(name: str) -> str:
    """A file's name, without what differs from cell to cell and from run to run: all files of a loop have one."""
    name = Path(name).name
    if found := SCRATCH.match(name):
        return f"new {plain(found[1])}"
    if CELL.match(name):
        return "CELL"
    return OF_MANY.sub(r"*\3", name)


@dataclass
class Tap:
    """Counts the calls, and lets one of them fail."""

    at: int = -1
    kind: str = ""
    points: list[Point] = field(default_factory=list)
    done: Callable[[], None] = lambda: None  # called before a fault
    names: dict[int, str] = field(default_factory=dict)  # by handle

    def over(self, module: Any) -> Tapped:
        return Tapped(self, module)

    def install(self) -> None:
        for module in (files, handles, batch):
            module.os = self.over(os)  # type: ignore[attr-defined]
        for module in (files, handles):
            module.fcntl = self.over(fcntl)  # type: ignore[attr-defined]

    @staticmethod
    def remove() -> None:
        for module in (files, handles, batch):
            module.os = os  # type: ignore[attr-defined]
        for module in (files, handles):
            module.fcntl = fcntl  # type: ignore[attr-defined]

    def call(self, name: str, real: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        creates = name == "open" and bool(arguments[1] & os.O_CREAT)
        first = arguments[0]
        place = self.names.get(first, "") if isinstance(first, int) else plain(os.fspath(first))
        point = Point(len(self.points), "create" if creates else name, caller(), place)
        self.points.append(point)
        if point.number == self.at:
            self.done()
            self._fail(point, real, arguments, options)
        elif 0 <= self.at < point.number and self._still(point):
            raise OSError(CODES[self.kind], os.strerror(CODES[self.kind]))
        found = real(*arguments, **options)
        if name == "open":
            self.names[found] = place
        return found

    def _fail(self, point: Point, real: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> None:
        if self.kind in CODES:
            raise OSError(CODES[self.kind], os.strerror(CODES[self.kind]))
        if self.kind == "torn":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        elif self.kind == "kill after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    def _still(self, point: Point) -> bool:
        """Whether a fault that lasts hits this call as well."""
        if self.kind == "disk full from there on":
            return point.call in NEED_ROOM
        if self.kind == "file broken from there on":
            return (point.call, point.name) == (self.points[self.at].call, self.points[self.at].name)
        return self.kind == "disk dead from there on"


class Tapped:
    """A module whose calls are counted."""

    def __init__(self, tap: Tap, module: Any) -> None:
        self._tap, self._module = tap, module

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        if name == "fdopen":
            return lambda file, *arguments, **options: TappedFile(self._tap, file)
        if name not in (*READS, *WRITES, "flock"):
            return real
        return lambda *arguments, **options: self._tap.call(name, real, arguments, options)


class TappedFile:
    """A log, whose lines are written by calls that are counted."""

    def __init__(self, tap: Tap, file: int) -> None:
        self._tap, self._file = tap, file

    def write(self, text: str) -> None:
        self._tap.call("write", os.write, (self._file, text.encode(errors="backslashreplace")), {})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._file)


def caller() -> str:
    frame: Any = sys._getframe(2)
    while frame and frame.f_code.co_filename in GATE:
        frame = frame.f_back
    return frame.f_code.co_qualname if frame else "?"
