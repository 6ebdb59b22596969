"""Cells to Slurm through submitit: arrays of jobs, students behind their teachers. No torch here.

A launch's file, written before anything is submitted, says which job holds which cells; jobs are known by their names, which
carry the launch's id. Job ids are only used while Slurm tells them, and submitit's pickles are never read here: ids are given
out again after a controller lost its state, and so are pickles' names. What is done, the store says.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.errors import UserError
from bench.jobs.cluster import Cluster
from bench.jobs.local import ROUNDS, environment, give_up
from bench.jobs.worker import Job, Worker
from bench.records.cell import Cell
from bench.records.store import Store

ANSWER_S = 60  # to a client command; one without a controller needs about 10
ARRAY_SIZE = 1001  # where the cluster does not tell: Slurm's own default
THREADS = 4  # where the user does not say
WAIT_S = 2.0
FORGETS_S = 10  # Slurm may show a job this late


class Queued(NamedTuple):
    job_id: str  # of this moment
    state: str  # as squeue says: PENDING, RUNNING, ...
    reason: str


def submit(cells: list[Cell], store: Store, grid: str, options: dict[str, Any], cluster: Cluster) -> int:
    """Hand over the cells that are neither settled nor in the queue; returns how many those are.

    Raises:
        UserError: Slurm does not answer or refuses; the folder does not suit jobs on other machines.
    """
    root = store.root.resolve()
    _check_shared(root)
    queued = queue(store, grid)
    left = [cell for cell in cells if cell.id not in queued and not store.settled(grid, cell.id)]
    if not left:
        return 0
    size = max_array_size()
    launch = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    arrays = list(plan(left, set(queued), cluster.cells_per_job, size))
    store.write_launch(grid, launch, [[[cell.id for cell in job] for job in array] for array, _ in arrays])
    ids = {cell_id: job.job_id for cell_id, job in queued.items()}
    for number, (array, teacher) in enumerate(arrays):
        asked = {**options, "threads": cluster.threads or THREADS, "neighbours": 0}
        processes = array[0][0].recipe.processes
        job = Job(str(root), grid, [], asked, processes=processes, alone=True)
        jobs = [replace(job, cells=[cell.model_dump(mode="json") for cell in element]) for element in array]
        name = job_name(launch, number)
        found = _submit(jobs, name, store.launch_folder(grid, launch), cluster, ids.get(teacher or ""))
        ids |= {cell.id: job_id for element, job_id in zip(array, found, strict=True) for cell in element}
    return len(left)


def plan(
    cells: list[Cell], queued: set[str], cells_per_job: int, array_size: int
) -> Iterator[tuple[list[list[Cell]], str | None]]:
    """(jobs of an array, the cell it depends on or None), teachers' arrays first.

    A job that others depend on holds one cell. The students of a teacher form arrays of their own, since a dependency belongs
    to a whole array.
    """
    coming = {cell.id for cell in cells} | queued
    teachers = {cell.teacher.cell for cell in cells if cell.teacher}
    groups: dict[tuple[str | None, bool, int], list[Cell]] = {}
    for cell in cells:
        teacher = cell.teacher.cell if cell.teacher else None
        key = (teacher if teacher in coming else None, cell.id in teachers, cell.recipe.processes)
        groups.setdefault(key, []).append(cell)
    for (teacher, teaches, _), group in sorted(groups.items(), key=lambda item: (item[0][0] is not None, not item[0][1])):
        each = 1 if teaches else cells_per_job
        jobs = [group[start : start + each] for start in range(0, len(group), each)]
        for start in range(0, len(jobs), array_size):
            yield jobs[start : start + array_size], teacher


def job_name(launch: str, number: int) -> str:
    return f"kd-{launch}-{number}"


def _submit(jobs: list[Job], name: str, folder: Path, cluster: Cluster, after: str | None) -> list[str]:
    """Submit one array; returns its jobs' ids."""
    import submitit

    processes = jobs[0].processes
    nodes = min(cluster.nodes, processes)
    if processes % nodes:
        raise UserError(f"nodes: {nodes} do not share {processes} processes (recipe.processes) evenly")
    wishes: dict[str, Any] = {
        "nodes": nodes,
        "ntasks_per_node": processes // nodes,
        "srun_args": ["--kill-on-bad-exit=1"],  # a process that waits for a dead one would wait for long
        "job_name": name,
        "time": cluster.minutes,
        "cpus_per_task": cluster.threads or THREADS,
        "signal_delay_s": min(90, cluster.minutes * 15),
        "additional_parameters": {"requeue": True},
    }
    wishes |= {key: value for key in ("partition", "account", "qos", "constraint") if (value := getattr(cluster, key))}
    if cluster.gpus:
        wishes["gpus_per_node"] = cluster.gpus * processes // nodes
    if cluster.memory_gib:
        wishes["mem"] = f"{round(cluster.memory_gib * 1024 * processes / nodes)}M"
    if cluster.setup:
        wishes["setup"] = cluster.setup
    if cluster.jobs:
        wishes["array_parallelism"] = cluster.jobs
    if after:
        wishes["dependency"] = f"afterok:{after}"
        wishes["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)  # `bench.jobs.worker.ATTEMPTS` bounds them
    executor.update_parameters(**wishes)
    try:
        with environment(cluster.threads or THREADS), executor.batch():
            found = [executor.submit(Worker(), job) for job in jobs]
    except (
        subprocess.CalledProcessError,
        submitit.core.utils.FailedJobError,
        submitit.core.utils.FailedSubmissionError,
    ) as error:
        raise UserError(f"sbatch refused: {_last_line(str(error))}") from None
    return [job.job_id for job in found]


def queue(store: Store, grid: str) -> dict[str, Queued]:
    """What Slurm holds of a grid's cells, by cell.

    Raises:
        UserError: Slurm does not answer, and this grid was handed to it before.
    """
    launches = store.launches(grid)
    if not launches:
        return {}
    names = {job_name(launch, number): array for launch, arrays in launches.items() for number, array in enumerate(arrays)}
    answer = _call("squeue", "--me", "--array", "--noheader", "--format=%j|%i|%K|%T|%r")
    found = {}
    for line in answer.splitlines():
        name, job_id, index, state, reason = line.split("|", 4)
        element = int(index) if index.isdigit() else 0
        if name in names and element < len(names[name]):
            found.update(dict.fromkeys(names[name][element], Queued(job_id, state, reason)))
    return found


def cancel(store: Store, grid: str) -> int:
    """End the grid's jobs and no others; returns how many cells they held.

    Raises:
        UserError: Slurm does not answer.
    """
    held = queue(store, grid)
    ids = sorted({job.job_id for job in held.values()})  # as Slurm tells them now, of jobs with this grid's names
    for start in range(0, len(ids), 500):
        _call("scancel", "--me", *ids[start : start + 500])
    return len(held)


def follow(
    cells: list[Cell],
    store: Store,
    grid: str,
    options: dict[str, Any],
    cluster: Cluster,
    watch: Callable[[], None],
    wait_s: float = WAIT_S,
) -> None:
    """Stay until every cell is done or failed, and hand over again what Slurm lost.

    Raises:
        UserError: Slurm refuses a job.
        KeyboardInterrupt: the jobs go on.
    """
    rounds, before = 0, len(cells)
    unseen_since = time.monotonic()
    while left := [cell for cell in cells if not store.settled(grid, cell.id)]:
        watch()
        time.sleep(wait_s)
        try:
            if queue(store, grid):
                unseen_since = time.monotonic()
        except UserError:  # a controller that is down comes back, and knows its jobs again
            unseen_since = time.monotonic()
        if time.monotonic() - unseen_since < FORGETS_S:
            continue
        rounds = 0 if len(left) < before else rounds + 1
        before = len(left)
        if rounds > ROUNDS:
            break
        for cell in left:
            teacher = cell.teacher.cell if cell.teacher else None
            if teacher and store.scratch(grid, teacher, "failure.json"):
                from bench.jobs.worker import fail

                fail(store, grid, cell.id, f"its teacher {teacher} failed", again=True)
        submit(left, store, grid, options, cluster)
        unseen_since = time.monotonic()
    give_up(left, store, grid, "see the job's log beside the launch")
    watch()


def max_array_size() -> int:
    """Jobs that one array may hold.

    Raises:
        UserError: there is no Slurm here, or it does not answer.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else ARRAY_SIZE


def _call(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_S).stdout  # noqa: S603
    except FileNotFoundError:
        raise UserError(f"there is no {command[0]} on this machine; --cluster slurm needs one that submits jobs") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: Slurm did not answer within {ANSWER_S} s") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]}: {_last_line(error.stderr)}") from None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def _check_shared(root: Path) -> None:
    """Refuse a folder in which jobs on several machines would not exclude each other, or whose name Slurm would misread.

    Raises:
        UserError: says what to change.
    """
    if re.search(r"[%\\\x00-\x1f'\"]", str(root)):
        raise UserError(f"{root}: Slurm reads %, \\, quotes and control characters in paths as its own; choose another folder")
    mounts = []
    with contextlib.suppress(OSError):
        mounts = [disk for disk in psutil.disk_partitions(all=True) if root.is_relative_to(disk.mountpoint)]
    if mounts:
        mount = max(mounts, key=lambda disk: len(disk.mountpoint))
        if reason := local_locks(mount.fstype, mount.opts):
            raise UserError(f"{root}: {reason}; cells could be trained twice. Have it mounted with locks that all nodes see")


def local_locks(fstype: str, options: str) -> str | None:
    """Why locks on such a file system hold on one machine only, or None."""
    given = set(options.split(","))
    if fstype.startswith("nfs") and given & {"nolock", "local_lock=all", "local_lock=flock"}:
        return "this NFS mount keeps locks to each machine (nolock or local_lock)"
    if fstype == "lustre" and "flock" not in given:
        return "this Lustre mount keeps locks to each machine (localflock), or has none (noflock)"
    return None
