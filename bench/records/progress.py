"""How far a run is, as the terminal shows it, read from the results folder alone. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from bench.records.board import FINAL_STATES, Board, Glance, bar, failures, places
from bench.records.folders import GridFolder
from bench.records.pacing import Pacing
from bench.screen import Screen
from bench.texts import one_line

LOOK_S = 2.0  # between two looks of `watch`
IDLE_S = 60.0  # without a training, after which `watch` says so; a worker takes some to start


class Progress:
    """A live table in a terminal; elsewhere, a line for each cell that ends."""

    def __init__(self, folder: GridFolder, cells: Collection[str], console: Screen) -> None:
        """
        Args:
            cells: ids of the cells to follow; the grid's manifest knows them.
        """
        known = places(folder.manifest()["cells"]) if cells else {}
        self.board = Board(folder, {cell_id: known[cell_id] for cell_id in cells})
        self.console = console
        self._pacing = Pacing()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._look()
        except Exception:
            if kind is None:  # else it would hide the first error
                raise
        finally:
            if self.live:
                self.live.stop()

    def note(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line)

    def update(self) -> None:
        """Look again where a look is due."""
        if not self._pacing.pause_s:
            self._look()

    def _look(self) -> None:
        with self._pacing.look():
            for cell_id in self.board.look():
                self._print_end(cell_id)
            if self.live:
                self.live.update(self.screen())

    def screen(self) -> Group:
        """What the live table shows, in the console's width and height."""
        width, height = self.console.size
        shares = [1.0 if each.state in FINAL_STATES else each.share for each in self.board.glances.values()]
        line = Text(self.board.headline(), no_wrap=True, overflow="ellipsis")
        share = sum(shares) / max(1, len(shares))
        return Group(line, bar(share, min(60, width)), self.board.view(width, height - 3))

    def _print_end(self, cell_id: str) -> None:
        found, name = self.board.glances[cell_id], self.board.name(cell_id)
        if found.state == "failed":
            failure = self.board.cells[cell_id].failure() or {}
            print_line(self.console, f"failed  {name}: {failure.get('error', '')}", "red")
        elif found.state == "done" and not self.live:
            self.console.print(f"done    {cell_id}: {name}: {found.top1:.2f} %")


def name_failures(folder: GridFolder, cells: Collection[str], console: Screen) -> None:
    """Print why these cells have failed, and what to type then."""
    known = places(folder.manifest()["cells"])
    for line in failures(Board(folder, {cell_id: known[cell_id] for cell_id in cells}), AGAIN):
        print_line(console, line)


AGAIN = "the same `run` with --retry"


class Status(NamedTuple):
    """How far a grid is."""

    folder: GridFolder
    board: Board
    skipped: list[dict[str, str]]  # {"what", "reason"}
    queued: dict[str, str]  # by cell that waits in a queue: where it stands there
    silent: str  # why a queue does not answer, or ""

    @property
    def counts(self) -> dict[str, int]:
        return self.board.counts

    @property
    def states(self) -> dict[str, str]:
        """By cell: of STATES or RARE_STATES."""
        return {cell_id: found.state for cell_id, found in self.board.glances.items()}

    def active(self) -> bool:
        """Whether, as far as is known, somebody trains or tries cells out, or will when a queue lets them."""
        return bool({"running", "queued"} & set(self.states.values()) or self.silent or self.folder.checking()[0])

    def as_json(self) -> dict[str, Any]:
        return {"grid": self.folder.name, "counts": self.counts, "cells": self.states, "skipped": self.skipped}

    def show(self, console: Screen, more: Iterable[str] = ()) -> None:
        """Print the table, what else there is to know, and further lines."""
        console.print(f"{self.folder.name}: {self.board.headline()}")
        console.print(self.board.view(console.width))
        for line in [*self.notes(), *more]:
            print_line(console, line)

    def notes(self) -> list[str]:
        """What else there is to know, a line each."""
        board = self.board
        lines = [f"unreadable {cell_id}: {board.cells[cell_id].unreadable()}" for cell_id in board.of_state("unreadable")]
        lines += [f"queued  {board.name(cell_id)}: {where}" for cell_id, where in self.queued.items()]
        lines += failures(board, AGAIN)
        lines += [f"skipped {skip['what']}: {skip['reason']}" for skip in self.skipped]
        if self.silent and self.counts["missing"]:
            lines.append(f"the queue is not known: {self.silent}")
        return lines


def status(folder: GridFolder, queued: Mapping[str, str], silent: str = "", former: Status | None = None) -> Status:
    """The state of every cell of the manifest. What is unfinished of earlier requests is not missing, and left out.

    Args:
        queued: by cell that a backend holds, where it stands in its queue.
        silent: why a queue does not answer.
        former: what an earlier look has found; cells that were done by then are not looked at again.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    manifest = folder.manifest()
    earlier = {cell["id"] for cell in manifest["cells"] if cell.get("earlier")}  # not asked for by the last request
    board = Board(folder, places(manifest["cells"]), former.board.glances if former else {})
    board.leave_out(cell_id for cell_id in board.of_state("missing") if cell_id in earlier)
    waiting = {cell_id: where for cell_id, where in queued.items() if cell_id in board.of_state("missing")}
    board.glances |= dict.fromkeys(waiting, Glance("queued"))
    return Status(folder, board, manifest["skipped"], waiting, silent)


def watch(look: Callable[[Status | None], Status], console: Screen, goes_on: Callable[[], bool] = lambda: False) -> Status:
    """Show a status again and again until nothing is left to train, outside a terminal as a line a change; returns the last.

    Args:
        look: takes what the last look has found.
        goes_on: whether more will be asked for, where all that is asked for has ended.
    """
    last, found, pacing, active = "", None, Pacing(LOOK_S), time.time()
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:
        while True:
            with pacing.look():
                found = look(found)
            line = f"{found.folder.name}: {found.board.headline()}"
            ended = set(found.states.values()) <= {*FINAL_STATES} and not goes_on()
            if ended or found.active():
                active = time.time()
            elif time.time() - active > IDLE_S:
                line += f"; nobody has trained since {datetime.fromtimestamp(active):%H:%M:%S}: `run` goes on"
            if live:
                live.update(_watched(found, line, console), refresh=True)
            elif line != last:
                console.print(line)
            if ended:
                break
            last = line
            time.sleep(pacing.pause_s)
    return found


def _watched(found: Status, line: str, console: Screen) -> RenderableType:
    """A status that fits on the screen: of its notes the last ones."""
    width, height = console.size
    notes = [Text(each, no_wrap=True, overflow="ellipsis") for each in found.notes()[-(height // 4) :]]
    return Group(Text(line, no_wrap=True, overflow="ellipsis"), found.board.view(width, height - 2 - len(notes)), *notes)


def print_line(console: Screen, line: str, style: str = "") -> None:
    """Print a line; in a terminal cut to its width."""
    console.print(Text(one_line(line), style=style, no_wrap=True, overflow="ellipsis"), soft_wrap=not console.is_terminal)
