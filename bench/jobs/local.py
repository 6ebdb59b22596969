"""Cells to jobs on this machine, through submitit: in this process (debug) or in bounded processes (local).

Every job gets the whole list and takes the first cell that is neither done, failed, held by another, nor waiting for its
teacher: see `bench.jobs.worker`. A job's own result is never asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from bench.cores import usable_cores
from bench.errors import UserError
from bench.jobs.cluster import Cluster
from bench.jobs.worker import ATTEMPTS, POLL_S, Job, Worker, fail
from bench.records.cell import Cell
from bench.records.store import Store

ROUNDS = ATTEMPTS + 1  # launches in a row that may end without any cell's end: so many a deadly cell needs to be named
PROJECT = Path(__file__).resolve().parents[2]


def launch(
    cells: list[Cell], store: Store, grid: str, options: dict[str, Any], cluster: Cluster, watch: Callable[[], None]
) -> None:
    """Train all cells that are neither done nor failed; returns when each is one of both.

    Args:
        watch: called about twice a second meanwhile.

    Raises:
        UserError: what became of a cell cannot even be written.
        KeyboardInterrupt, SystemExit: after the workers have been stopped.
    """
    idle_rounds, last_words = 0, ""
    while (left := [cell for cell in cells if not store.settled(grid, cell.id)]) and idle_rounds < ROUNDS:
        if all(_in_other_hands(cell, store, grid) for cell in left):  # of another `run`: wait, and take over what it loses
            watch()
            time.sleep(POLL_S)
            continue
        last_words = _round(left, store, grid, options, cluster, watch)
        idle_rounds = 0 if any(store.settled(grid, cell.id) for cell in left) else idle_rounds + 1
    give_up(left, store, grid, last_words)
    watch()


def give_up(cells: list[Cell], store: Store, grid: str, last_words: str) -> None:
    """Name what was lost without a trace.

    Raises:
        UserError: a trace cannot be written.
    """
    for cell in cells:
        if store.settled(grid, cell.id) or store.locked(grid, cell.id):
            continue
        error = "its workers died (killed, or out of memory), or could not write its folder"
        try:
            fail(store, grid, cell.id, error, last_words, again=True)
        except OSError as why:
            raise UserError(f"{cell.id} is not done, and its folder cannot be written: {why}; what is done is kept") from None


def _in_other_hands(cell: Cell, store: Store, grid: str) -> bool:
    teacher = cell.teacher.cell if cell.teacher else None
    return store.locked(grid, cell.id) or (teacher is not None and store.locked(grid, teacher))


def _round(
    cells: list[Cell], store: Store, grid: str, options: dict[str, Any], cluster: Cluster, watch: Callable[[], None]
) -> str:
    """Start workers and wait for their end; returns what the last one that failed had to say."""
    last_words = ""
    for processes in dict.fromkeys(cell.recipe.processes for cell in cells):  # a job's processes are of one number
        group = [cell for cell in cells if cell.recipe.processes == processes]
        plain = [cell.model_dump(mode="json") for cell in group]
        job = Job(str(store.root.resolve()), grid, plain, options, processes=processes)
        if cluster.kind == "debug":
            _debug(job, cluster)
        else:
            last_words = _local(job, len(group), cluster, watch) or last_words
    return last_words


def _debug(job: Job, cluster: Cluster) -> None:
    import submitit

    options = {**job.options, "threads": cluster.threads}
    with tempfile.TemporaryDirectory() as folder:
        debug = submitit.DebugExecutor(folder).submit(Worker(), replace(job, options=options))
        if error := debug.exception():
            raise error


def _local(job: Job, cells: int, cluster: Cluster, watch: Callable[[], None]) -> str:
    import submitit

    gpus, device = _gpus(job.options.get("device", "auto"))
    cores = usable_cores()
    each = job.processes
    if gpus and each > len(gpus):
        raise UserError(f"recipe.processes is {each}, and there are {len(gpus)} GPUs: use a cluster, or --device cpu")
    slots = len(gpus) // each * cluster.per_gpu
    jobs = min(cluster.jobs or slots or max(1, cores // each), slots or cells, cells)
    threads = cluster.threads or max(1, cores // (jobs * each))
    options = {**job.options, "device": device, "threads": threads, "neighbours": jobs - 1}
    with tempfile.TemporaryDirectory() as folder, environment(threads):
        running = []
        try:
            for number in range(jobs):
                executor = submitit.LocalExecutor(folder)
                executor.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=each)
                first = number * each % (len(gpus) // each * each) if gpus else 0
                devices = ",".join(gpus[first : first + each])
                running.append(executor.submit(Worker(), replace(job, options=options, owner=os.getpid(), devices=devices)))
            while not all(task.done() for task in running):
                watch()
                time.sleep(POLL_S)
        finally:
            for task in running:
                if not task.done():
                    _kill(int(task.job_id))
        return "".join(text for path in Path(folder).rglob("*_log.err") if (text := path.read_text(errors="replace")))[-4000:]


def _kill(process_id: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _gpus(device: str) -> tuple[list[str], str]:
    """The CUDA devices that jobs may use, as CUDA_VISIBLE_DEVICES names them, and the device as each job is told it."""
    if device == "cpu":
        return [], device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        every = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    else:
        from torch.cuda import device_count  # planning has imported torch by now

        every = [str(index) for index in range(device_count())]
    if device.startswith("cuda:"):  # the job sees this one alone, as its first
        return [every[int(device.removeprefix("cuda:"))]], "cuda"
    return every, device


@contextlib.contextmanager
def environment(threads: int) -> Iterator[None]:
    """What a job inherits: where this project lies, and a bound for thread pools that start before torch is asked."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    values = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
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
