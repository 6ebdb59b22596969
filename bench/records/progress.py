"""What a run shows in the terminal, read from the store alone. No torch here."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.records.store import Store

STATES = ("done", "running", "failed", "missing")


def state_of(store: Store, grid: str, cell_id: str) -> str:
    """One of `STATES`."""
    if store.done(grid, cell_id):
        return "done"
    if store.locked(grid, cell_id):
        return "running"
    return "failed" if store.scratch(grid, cell_id, "failure.json") else "missing"


class Progress:
    """A live table in a terminal; elsewhere, a line for each cell that ends."""

    def __init__(self, store: Store, grid: str, cells: dict[str, str], console: Console) -> None:
        self.store, self.grid, self.cells, self.console = store, grid, cells, console  # cells: id -> label
        self.settled = {cell_id: state for cell_id in cells if (state := state_of(store, grid, cell_id)) in ("done", "failed")}
        self.before = len(self.settled)
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def update(self) -> None:
        running = []
        for cell_id in self.cells:
            if cell_id in self.settled:
                continue
            state = state_of(self.store, self.grid, cell_id)
            if state in ("done", "failed"):
                self.settled[cell_id] = state
                self._tell(cell_id, state)
            elif state == "running":
                running.append(cell_id)
        if self.live:
            self.live.update(self._table(running))

    def _tell(self, cell_id: str, state: str) -> None:
        if state == "failed":
            failure = self.store.scratch(self.grid, cell_id, "failure.json") or {}
            self.console.print(f"[red]failed[/]  {cell_id}: ", Text(str(failure.get("error", ""))))
        elif not self.live:
            record = self.store.record(self.grid, cell_id)
            if record:
                self.console.print(f"done    {cell_id}: {record.accuracies.last.top1:.2f} %", highlight=False)

    def _table(self, running: list[str]) -> Group:
        states = list(self.settled.values())
        share = float(len(states))
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "epoch", "accuracy", "images/s"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        for cell_id in running:
            told = self.store.scratch(self.grid, cell_id, "progress.json") or {}
            share += told.get("share", 0.0)
            top1 = told.get("top1")
            table.add_row(
                cell_id.rpartition("-")[0],
                f"{told.get('epoch', 0)}/{told.get('epochs', '?')}",
                "–" if top1 is None else f"{top1:.2f} %",
                f"{told.get('images_per_s', 0):,.0f}",
            )
        elapsed = time.monotonic() - self.started
        worked = share - self.before
        rest = timedelta(seconds=round(elapsed * (len(self.cells) - share) / worked)) if worked > 0 else "?"
        line = f"{states.count('done')} of {len(self.cells)} done, {len(running)} running, {states.count('failed')} failed"
        bar = ProgressBar(total=len(self.cells), completed=share, width=60)
        return Group(Text(f"{line}; {rest} left"), bar, table)
