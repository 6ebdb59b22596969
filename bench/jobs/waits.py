"""What a run waits for, in words: nobody should look at a screen on which nothing happens. No torch here."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import psutil

from bench.records.folders import GridFolder
from bench.records.pacing import Pacing

PATIENCE_S = 10.0  # a reason that stands shorter is not worth a line
LOOK_S = 5.0  # between two looks at who holds the locks


class Notes(Protocol):
    def note(self, line: str) -> None:
        """Takes one line for the user."""


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


def held_by_others(cells: Iterable[str], folder: GridFolder) -> dict[str, list[str]]:
    """By reason the ids of the cells that are locked by processes which are neither this one nor started by it."""
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found: dict[str, list[str]] = {}
    for cell_id in cells:
        place = folder.cell(cell_id)
        if not place.locked():
            continue
        holder = place.holder()
        if holder is None:
            found.setdefault("another process trains it", []).append(cell_id)
        elif holder.host != socket.gethostname() or holder.process not in ours:
            found.setdefault(f"trained by {holder}", []).append(cell_id)
    return found
