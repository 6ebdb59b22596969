"""How far a run is, as the terminal shows it, read from the results folder alone. No torch here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.records.cell_folder import CellFolder
from bench.records.folders import GridFolder

STATES = ("done", "running", "failed", "missing")  # always counted
RARE_STATES = ("queued", "unreadable")  # counted where there are any
FINAL_STATES = ("done", "failed", "unreadable")


class Progress:
    """A live table in a terminal; elsewhere, a line for each cell that ends."""

    def __init__(self, folder: GridFolder, labels: Mapping[str, str], console: Console) -> None:
        self.cells = {cell_id: folder.cell(cell_id) for cell_id in labels}
        self.console = console
        self.ended = {cell_id: state for cell_id, cell in self.cells.items() if (state := cell.state()) in FINAL_STATES}
        self.ended_before = len(self.ended)
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def note(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, highlight=False, markup=False)

    def update(self) -> None:
        running = []
        for cell_id, cell in self.cells.items():
            if cell_id in self.ended:
                continue
            state = cell.state()
            if state in FINAL_STATES:
                self.ended[cell_id] = state
                self._print_end(cell, state)
            elif state == "running":
                running.append(cell)
        if self.live:
            self.live.update(self._table(running))

    def _print_end(self, cell: CellFolder, state: str) -> None:
        if state == "failed":
            failure = cell.failure() or {}
            self.console.print(f"[red]failed[/]  {cell.id}: ", Text(str(failure.get("error", ""))))
        elif state == "done" and not self.live and (record := cell.record()):
            self.console.print(f"done    {cell.id}: {record.accuracies.last.top1:.2f} %", highlight=False)

    def _table(self, running: list[CellFolder]) -> Group:
        states = list(self.ended.values())
        share = float(len(states))
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "epoch", "accuracy", "images/s"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        for cell in running:
            latest = cell.progress() or {}
            share += latest.get("share", 0.0)
            top1 = latest.get("top1")
            table.add_row(
                cell.id.rpartition("-")[0],
                _epoch(latest, "/"),
                "–" if top1 is None else f"{top1:.2f} %",
                f"{latest.get('images_per_s', 0):,.0f}",
            )
        elapsed = time.monotonic() - self.started
        worked = share - self.ended_before
        rest = timedelta(seconds=round(elapsed * (len(self.cells) - share) / worked)) if worked > 0 else "?"
        line = f"{states.count('done')} of {len(self.cells)} done, {len(running)} running, {states.count('failed')} failed"
        bar = ProgressBar(total=len(self.cells), completed=share, width=60)
        return Group(Text(f"{line}; {rest} left"), bar, table)


class Status(NamedTuple):
    """How far a grid is."""

    folder: GridFolder
    states: dict[str, str]  # by cell: of STATES or RARE_STATES
    skipped: list[dict[str, str]]  # {"what", "reason"}
    queued: dict[str, str]  # by cell that waits in a queue: where it stands there
    silent: str  # why a queue does not answer, or ""

    @property
    def counts(self) -> dict[str, int]:
        found = list(self.states.values())
        names = [*STATES, *(state for state in RARE_STATES if state in found)]
        return {state: found.count(state) for state in names}

    def as_json(self) -> dict[str, Any]:
        return {"grid": self.folder.name, "counts": self.counts, "cells": self.states, "skipped": self.skipped}

    def show(self, console: Console) -> None:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        console.print(f"{self.folder.name}: {counts}", highlight=False)
        for cell_id, state in self.states.items():
            if detail := self._detail(cell_id, state):
                console.print(f"{state:<7} {cell_id}: {detail}", highlight=False, markup=False)
        for skip in self.skipped:
            console.print(f"skipped {skip['what']}: {skip['reason']}", highlight=False, markup=False)
        if self.silent and "missing" in self.states.values():
            console.print(f"the queue is not known: {self.silent}", highlight=False, markup=False)

    def _detail(self, cell_id: str, state: str) -> str | None:
        cell = self.folder.cell(cell_id)
        if state == "failed":
            return str((cell.failure() or {}).get("error", ""))
        if state == "running":
            return f"epoch {_epoch(cell.progress() or {}, ' of ')}"
        return cell.unreadable() if state == "unreadable" else self.queued.get(cell_id)


def status(folder: GridFolder, queued: Mapping[str, str], silent: str = "") -> Status:
    """The state of every cell of the manifest. What is unfinished of earlier requests is not missing, and left out.

    Args:
        queued: by cell that a backend holds, where it stands in its queue.
        silent: why a queue does not answer.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    manifest = folder.manifest()
    earlier = {cell["id"] for cell in manifest["cells"] if cell.get("earlier")}  # not asked for by the last request
    states: dict[str, str] = {cell["id"]: folder.cell(cell["id"]).state() for cell in manifest["cells"]}
    states = {cell_id: state for cell_id, state in states.items() if state != "missing" or cell_id not in earlier}
    waiting = {cell_id: where for cell_id, where in queued.items() if states.get(cell_id) == "missing"}
    return Status(folder, states | dict.fromkeys(waiting, "queued"), manifest["skipped"], waiting, silent)


def _epoch(progress: Mapping[str, Any], between: str) -> str:
    return f"{progress.get('epoch', 0)}{between}{progress.get('epochs', '?')}"
