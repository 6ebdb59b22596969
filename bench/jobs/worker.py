"""What runs in a job: trains cells until none is left that it could take. Only the store says what is done.

A cell is taken under its lock, which the system frees when its holder dies. A worker that is told to stop (SIGTERM) leaves the
last checkpoint and ends; one that is killed leaves an attempt behind, and a cell that has cost `ATTEMPTS` workers in a row
without a checkpoint in between counts as failed. No torch here: `bench.engine` is imported by the worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.records.cell import Cell
from bench.records.store import DamagedError, Store

ATTEMPTS = 3  # workers that a cell may lose before it has saved anything new
POLL_S = 0.5
OF_THE_PLACE = (OSError, MemoryError, DamagedError)  # not the cell's own doing: `run` tries again without being asked
# The same of want of memory where it has no type of its own, or one of torch's, which is not imported here
NO_MEMORY = ("OutOfMemoryError", "out of memory", "ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True)
class Job:
    """What a worker is told; plain values, since it may start in another process on another machine."""

    root: str
    grid: str
    cells: list[dict[str, Any]]
    options: dict[str, Any]  # of bench.records.options.Options
    owner: int | None = None  # the process without which the worker shall not go on
    devices: str | None = None  # CUDA_VISIBLE_DEVICES; None: as found
    processes: int = 1  # that train each cell together; cells with another number are left alone
    alone: bool = False  # nobody else is asked to train these cells: wait for those in other hands, and answer for all of them


class Worker:
    """What submitit calls. On a cluster it calls `checkpoint` as well, before a time limit, and has the job queued again."""

    def __call__(self, job: Job) -> None:
        work(job)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        # Nothing to save: the last checkpoint is on disk. A SIGTERM must not stop the command that queues the job again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _at_time_limit.set()
        return DelayedSubmission(self, job)


_at_time_limit = threading.Event()


def stop_on_sigterm() -> None:
    """End by an exception, so that what is open is closed and temporary files go."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def work(job: Job) -> None:
    """Train cells until none is left that this worker could take.

    Raises:
        SystemExit: the job answers for cells that are not done in the end.
    """
    if job.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.devices  # before torch is imported
    if job.owner:
        threading.Thread(target=_follow, args=(job.owner,), daemon=True).start()
    stop_on_sigterm()
    from bench.engine.distributed import join
    from bench.plugins import import_plugin
    from bench.records.options import Options

    options = Options(**job.options)
    for plugin in options.imports:
        import_plugin(plugin)
    store = Store(job.root)
    cells = [Cell.model_validate(cell) for cell in job.cells]
    with join(job.processes, options.device) as team:
        options = replace(options, device=team.device(options.device))
        if team.leads:
            _lead(cells, store, job, options, team)
        else:
            assist(store, job.grid, options, team)
    missing = [cell.id for cell in cells if not store.done(job.grid, cell.id)]
    if job.alone and missing:
        sys.exit(f"not done: {', '.join(missing)}")  # so that what depends on this job does not start


def assist(store: Store, grid: str, options: Any, team: Any) -> None:
    """Train along what the leader of the team tells."""
    from bench.engine.train import train

    while told := team.hear():
        cell = Cell.model_validate(told)
        try:
            train([cell], store, grid, options, team)
        except Exception as error:
            _blame(store, grid, cell, error, team)
            raise


def _lead(left: list[Cell], store: Store, job: Job, options: Any, team: Any) -> None:
    while left:
        states = {cell.id: _take(cell, left, store, job, options, team) for cell in left}
        waiting = [cell for cell in left if states[cell.id] == "waits" or (job.alone and states[cell.id] == "held")]
        if "tried" not in states.values():
            # A cell or teacher in another's hands is worth waiting for; a teacher in nobody's hands will not come.
            wanted = {cell.teacher.cell for cell in waiting if cell.teacher and cell.teacher.cell}
            wanted |= {cell_id for cell_id, state in states.items() if state == "held" and job.alone}
            if not any(store.locked(job.grid, cell_id) or store.done(job.grid, cell_id) for cell_id in wanted):
                break
            time.sleep(POLL_S)
        left = waiting


def _take(cell: Cell, left: list[Cell], store: Store, job: Job, options: Any, team: Any) -> str:
    """'tried', 'waits' (for its teacher), 'held' (by another), or 'passed': settled, or its folder cannot be used.

    With `options.together` it takes along what may train in lock-step with it out of `left`.
    """
    grid = job.grid
    if store.settled(grid, cell.id):
        return "passed"
    teacher = cell.teacher.cell if cell.teacher else None
    try:
        if teacher and not store.done(grid, teacher):
            if store.scratch(grid, teacher, "failure.json") is None:
                return "waits"
            fail(store, grid, cell.id, f"its teacher {teacher} failed", again=True)
            return "passed"
        with contextlib.ExitStack() as locks:
            locks.enter_context(store.lock(grid, cell.id))
            if store.settled(grid, cell.id):
                return "passed"
            together = options.together and team.size == 1
            group = [cell, *(_companions(cell, left, store, grid, locks) if together else [])]
            _try(group, store, grid, options, team)
            return "tried"
    except TimeoutError:
        return "held"
    except OSError as error:  # not even a trace can be left: the dispatcher sees that nothing came of it
        print(f"{cell.id}: {error}", file=sys.stderr)
        return "passed"


def _companions(cell: Cell, left: list[Cell], store: Store, grid: str, locks: contextlib.ExitStack) -> list[Cell]:
    """Cells of `left` that may train in lock-step with this one now; their locks are taken.

    A teacher for which others wait is not slowed down by company.
    """
    from bench.engine.lockstep import companions

    awaited = {other.teacher.cell for other in left if other.teacher}
    found: list[Cell] = []
    if cell.id in awaited:
        return found
    for other in companions(cell, [other for other in left if other.id not in awaited]):
        ready = not other.teacher or not other.teacher.cell or store.done(grid, other.teacher.cell)
        if not ready or store.settled(grid, other.id):
            continue
        with contextlib.suppress(TimeoutError, OSError):
            locks.enter_context(store.lock(grid, other.id))
            if not store.settled(grid, other.id):
                found.append(other)
    return found


def _try(group: list[Cell], store: Store, grid: str, options: Any, team: Any) -> None:
    """Train cells in lock-step, or the only one; where a group fails, each of its cells on its own."""
    from bench.engine.train import train

    for cell in group:
        if store.begin_attempt(grid, cell.id) > ATTEMPTS:
            error = f"{ATTEMPTS} workers died on it before it could save anything: killed, out of memory, or out of time"
            fail(store, grid, cell.id, error, again=True)
    group = [cell for cell in group if not store.settled(grid, cell.id)]
    if not group:
        return
    with _log_to([store.cell(grid, cell.id) / "log.txt" for cell in group]) as log:
        try:
            for cell in group:
                team.tell(cell.model_dump(mode="json"))
            train(group, store, grid, options, team)
            log.info("finished")
            return
        except Exception as error:  # whatever a cell does wrong, its siblings go on
            ruined = type(error).__name__ == "AcceleratorError"  # torch's: nothing on a GPU works any more in this process
            if len(group) == 1:
                log.exception("failed")
                _blame(store, grid, group[0], error, team)
                if team.size > 1 or ruined:  # of a team, the others may be anywhere in a step: a new worker goes on
                    raise
                return
            if ruined:  # nobody is blamed; attempts are counted
                raise
            log.warning("%d cells in lock-step failed (%s: %s); now one by one", len(group), type(error).__name__, error)
        except BaseException:
            log.info("stopped")
            if not _at_time_limit.is_set():  # whoever stops a worker does not blame the cell; a time limit may be too short
                for cell in group:
                    store.end_attempts(grid, cell.id)
            raise
    for cell in group:
        if not store.settled(grid, cell.id):
            store.end_attempts(grid, cell.id)
            _try([cell], store, grid, options, team)


def _blame(store: Store, grid: str, cell: Cell, error: Exception, team: Any) -> None:
    if team.size > 1 and store.scratch(grid, cell.id, "failure.json"):
        return  # of several processes the first has met the cause, the others its absence
    again = isinstance(error, OF_THE_PLACE) or any(word in f"{type(error).__name__}: {error}" for word in NO_MEMORY)
    fail(store, grid, cell.id, f"{type(error).__name__}: {error}", traceback.format_exc(), again)


def fail(store: Store, grid: str, cell_id: str, error: str, trace: str = "", again: bool = False) -> None:
    """Leave a trace in the place of a record. `again`: the next `run` tries without being asked to."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    body = {"error": error, "trace": trace, "when": when, "again": again}
    store.write_json(store.cell(grid, cell_id) / "failure.json", body)
    store.end_attempts(grid, cell_id)


@contextlib.contextmanager
def _log_to(paths: list[Path]) -> Iterator[logging.Logger]:
    log = logging.getLogger("bench.records.cell")
    log.setLevel(logging.INFO)
    log.propagate = False
    with contextlib.ExitStack() as open_files:
        for path in paths:
            handler = logging.FileHandler(path)
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            log.addHandler(handler)
            open_files.callback(handler.close)
            open_files.callback(log.removeHandler, handler)
        yield log


def _follow(owner: int) -> None:
    """End this process when its owner has ended, however it did: what is lost is redone from the checkpoint."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(owner)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(3)
