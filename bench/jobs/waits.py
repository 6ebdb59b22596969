"""What a run waits for, in words: nobody should look at a screen on which nothing happens. No torch here."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import psutil

from bench.records.folders import GridFolder
from bench.records.handles import Holder
from bench.records.pacing import PATIENCE_S, Pacing
from bench.texts import one_line

LOOK_S = 5.0  # between two looks at who holds the locks


class Notes(Protocol):
    def note(self, line: str) -> None:
        """Takes one line for the user."""


class Log:
    """Notes of a process that has no screen: lines of what it prints."""

    def note(self, line: str) -> None:
        print(one_line(line), file=sys.stderr, flush=True)


class Waits:
    """Names each reason to wait once it has stood for a while, and again where it comes back."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self._since: dict[str, float] = {}  # by reason
        self._named: set[str] = set()
        self._pacing = Pacing(LOOK_S)

    def see(self, reasons: Mapping[str, Sequence[str]]) -> None:
        """Take what waits now.

        Args:
            reasons: ids of the cells that wait, by reason.
        """
        now = time.time()
        self._since = {reason: self._since.get(reason, now) for reason in reasons}
        self._named &= reasons.keys()
        for reason, cells in reasons.items():
            if reason not in self._named and now - self._since[reason] >= PATIENCE_S:
                self._named.add(reason)
                what = cells[0] if len(cells) == 1 else f"{len(cells)} cells, {cells[0]} among them"
                self.notes.note(f"waiting since {datetime.fromtimestamp(self._since[reason]):%H:%M:%S} for {what}: {reason}")

    def look(self, cells: Iterable[str], folder: GridFolder) -> None:
        """See which of these cells processes train that this one has not started."""
        if not self._pacing.pause_s:
            with self._pacing.look():
                self.see(held_by_others(cells, folder))


def held_by_others(cells: Iterable[str], folder: GridFolder, jobs: Collection[str] = ()) -> dict[str, list[str]]:
    """By reason the ids of the cells that wait for a process: for another's, or for one of ours that is suspended.

    Args:
        jobs: on a cluster those of ours, as its queue names them; else this process and those that it has started are ours.
    """
    children = [child.pid for child in psutil.Process().children(recursive=True)]

    def is_ours(holder: Holder | None) -> bool:
        if holder is None:
            return False
        return holder.job in jobs if jobs else _is_here(holder) and holder.process in (os.getpid(), *children)

    found: dict[str, list[str]] = {}
    cells, at_work = list(cells), []
    for cell_id in cells:
        place = folder.cell(cell_id)
        if not place.locked():
            continue
        if is_ours(holder := place.holder()):
            at_work.append(cell_id)
        else:
            found.setdefault(f"trained by {_described(holder)}", []).append(cell_id)
    checking, holder = folder.checking()
    if cells and checking and not at_work and not is_ours(holder):  # workers wait for the end of that
        found[f"tried out by {_described(holder)}"] = cells
    for child in filter(suspended, children):
        found[f"process {child} of this run{_hint(child)}"] = at_work or cells
    return found


def suspended(process: int) -> bool:
    """Whether a process of this machine is stopped, as by SIGSTOP or a debugger."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def _is_here(holder: Holder) -> bool:
    return holder.host == socket.gethostname()


def _hint(process: int) -> str:
    return f" is suspended: `kill -CONT {process}` lets it go on"


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"{holder}, which{_hint(holder.process)}" if _is_here(holder) and suspended(holder.process) else str(holder)
