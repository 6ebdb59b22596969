"""Cells to jobs through submitit: in this process (debug) or in bounded processes of this machine (local).

Every job gets the whole list and takes the first cell that is neither done, failed, held by another, nor waiting for its
teacher. Only the store says what is done: a job's own result is never asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.cell import Cell
from bench.errors import UserError
from bench.store import Store

ROUNDS = 3  # launches in which a cell may lose its worker before that counts as a failure
POLL_S = 0.5
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """What a worker is told; plain values, since it may start in another process on another machine."""

    root: str
    grid: str
    cells: list[dict[str, Any]]
    options: dict[str, Any]  # of bench.engine.train.Options
    owner: int | None = None  # the process without which the worker shall not go on


def work(job: Job) -> None:
    """Train cells until none is left that this worker could take."""
    if job.owner:
        threading.Thread(target=_follow, args=(job.owner,), daemon=True).start()
    from bench.engine.train import Options
    from bench.grid import import_plugin

    options = Options(**job.options)
    for plugin in options.imports:
        import_plugin(plugin)
    store = Store(job.root)
    left = [Cell.model_validate(cell) for cell in job.cells]
    while left:
        waiting = []
        took = False
        for cell in left:
            state = _take(cell, store, job.grid, options)
            took |= state == "trained"
            if state == "waits":
                waiting.append(cell)
        if not took:
            # A teacher in another's hands is worth waiting for; one in nobody's hands will not come.
            teachers = {cell.teacher.cell for cell in waiting if cell.teacher and cell.teacher.cell}
            if not any(store.locked(job.grid, teacher) or store.done(job.grid, teacher) for teacher in teachers):
                return
            time.sleep(POLL_S)
        left = waiting


def _take(cell: Cell, store: Store, grid: str, options: Any) -> str:
    """'trained' (or tried), 'waits' (for its teacher), or 'passed': done, failed, or in another's hands."""
    from bench.engine.train import train

    if _settled(store, grid, cell.id):
        return "passed"
    teacher = cell.teacher.cell if cell.teacher else None
    if teacher and not store.done(grid, teacher):
        if store.scratch(grid, teacher, "failure.json") is None:
            return "waits"
        fail(store, grid, cell.id, f"its teacher {teacher} failed", "")
        return "passed"
    try:
        with store.lock(grid, cell.id):
            if _settled(store, grid, cell.id):
                return "passed"
            with _log_to(store.cell(grid, cell.id) / "log.txt") as log:
                try:
                    train([cell], store, grid, options)
                    log.info("finished")
                except Exception as error:  # whatever a cell does wrong, its siblings go on
                    log.exception("failed")
                    fail(store, grid, cell.id, f"{type(error).__name__}: {error}", traceback.format_exc())
    except TimeoutError:
        return "passed"
    return "trained"


def _settled(store: Store, grid: str, cell_id: str) -> bool:
    return store.done(grid, cell_id) or store.scratch(grid, cell_id, "failure.json") is not None


def fail(store: Store, grid: str, cell_id: str, error: str, trace: str) -> None:
    """Leave a trace in the place of a record."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_json(store.cell(grid, cell_id) / "failure.json", {"error": error, "trace": trace, "when": when})


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[logging.Logger]:
    log = logging.getLogger("bench.cell")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()


def _follow(owner: int) -> None:
    """End this process when its owner has ended, however it did: what is lost is redone from the checkpoint."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(owner)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(3)


@dataclass(frozen=True)
class Cluster:
    """Where jobs run. `jobs` and `threads` of 0 mean: one job a GPU, or one a core, with the cores shared out."""

    kind: str = "local"
    jobs: int = 0
    threads: int = 0


def launch(
    cells: list[Cell], store: Store, grid: str, options: dict[str, Any], cluster: Cluster, watch: Callable[[], None]
) -> None:
    """Train all cells that are neither done nor failed; returns when no worker is left.

    Args:
        watch: called about twice a second meanwhile.

    Raises:
        UserError: the kind of cluster is unknown.
        KeyboardInterrupt: after the workers have been stopped.
    """
    if cluster.kind not in ("local", "debug"):
        raise UserError(f"--cluster {cluster.kind}: choose local or debug")
    before = None
    for _ in range(ROUNDS):
        left = [cell for cell in cells if not _settled(store, grid, cell.id)]
        if not left or left == before:
            break
        before = left
        _round(left, store, grid, options, cluster, watch)
    for cell in cells:
        if not _settled(store, grid, cell.id) and not store.locked(grid, cell.id):
            fail(store, grid, cell.id, "its worker died: killed, or out of memory", "")
    watch()


def _round(
    cells: list[Cell], store: Store, grid: str, options: dict[str, Any], cluster: Cluster, watch: Callable[[], None]
) -> None:
    plain = [cell.model_dump(mode="json") for cell in cells]
    job = Job(str(store.root.resolve()), grid, plain, options)
    if cluster.kind == "debug":
        import submitit

        with tempfile.TemporaryDirectory() as folder:
            debug = submitit.DebugExecutor(folder).submit(work, replace(job, options={**options, "threads": cluster.threads}))
            if error := debug.exception():
                raise error
        return
    _local(job, len(cells), cluster, watch)


def _local(job: Job, cells: int, cluster: Cluster, watch: Callable[[], None]) -> None:
    import submitit

    # Asked without torch, which the dispatcher does not need.
    gpus = _gpus() if job.options.get("device", "auto") != "cpu" else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(cluster.jobs or len(gpus) or cores, cells)
    threads = cluster.threads or max(1, cores // jobs)
    options = {**job.options, "threads": threads, "neighbours": jobs - 1}
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder, _environment(environment):
        running = []
        try:
            for number in range(jobs):
                executor = submitit.LocalExecutor(folder)
                executor.update_parameters(
                    timeout_min=60 * 24 * 365,
                    gpus_per_node=1 if gpus else 0,
                    visible_gpus=[gpus[number % len(gpus)]] if gpus else (),
                )
                running.append(executor.submit(work, replace(job, options=options, owner=os.getpid())))
            while not all(task.done() for task in running):
                watch()
                time.sleep(POLL_S)
        finally:
            for task in running:
                if not task.done():
                    _kill(int(task.job_id))


def _kill(process_id: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _gpus() -> list[int]:
    """Indices of the CUDA devices that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [int(index) for index in visible.split(",") if index.strip().isdigit()]
    return [int(path.name.removeprefix("nvidia")) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
