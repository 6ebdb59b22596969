"""What runs in a job: trains cells until none is left that it could take. Only the results folder says what is done.

A cell is taken under its lock, which the system frees when its holder dies. A worker that is asked to stop (SIGTERM) leaves the
last checkpoint and ends. One that is killed leaves an attempt behind, and a cell that has cost `ATTEMPTS` workers in a row
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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import psutil

from bench.errors import SplitError, Stopped, at_time_limit, described, no_exit
from bench.jobs.check import check, name_failed, not_its_fault, wants_memory
from bench.jobs.waits import Log, Waits
from bench.records.cell import Cell
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options
from bench.records.pacing import Pacing
from bench.records.problems import BarredError, RefusedError
from bench.texts import one_line

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from bench.engine.distributed import Team

ATTEMPTS = 3  # workers that a cell may lose before it has saved anything new
POLL_S = 0.5
PROJECT = Path(__file__).resolve().parents[2]

Outcome = Literal["tried", "waiting", "locked", "passed"]  # see `_take`


@dataclass(frozen=True)
class Job:
    """What a worker receives; plain values, since it may start in another process on another machine."""

    results: str  # the results folder
    grid: str
    cells: list[dict[str, Any]]
    options: Options
    parent_pid: int | None = None  # the worker ends when this process does
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES; None: as found
    processes: int = 1  # that train each cell together
    exclusive: bool = False  # no other job has these cells: wait for those that are locked, and fail unless all get done
    check_s: float | None = None  # try the cells out for at most so many seconds, and train none

    @classmethod
    def describe(cls, cells: Sequence[Cell], folder: GridFolder, options: Options, exclusive: bool = False) -> Job:
        """A job for these cells, which have one number of processes."""
        plain = [cell.model_dump(mode="json") for cell in cells]
        root = str(folder.results.root.resolve())
        return cls(root, folder.name, plain, options, processes=cells[0].recipe.processes, exclusive=exclusive)


class Worker:
    """What submitit calls. On a cluster it calls `checkpoint` as well, before a time limit, and has the job queued again."""

    def __call__(self, job: Job) -> None:
        work(job)

    def checkpoint(self, job: Job) -> DelayedSubmission:
        from submitit.helpers import DelayedSubmission

        # Nothing to save: the last checkpoint is on disk. A SIGTERM must not stop the command that queues the job again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        at_time_limit.set()
        return DelayedSubmission(self, job)


def stop_on_sigterm() -> None:
    """End by an exception, so that what is open is closed and temporary files go."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def environment(threads: int) -> Iterator[None]:
    """What a job inherits: where this project lies, and a bound for thread pools that start before torch is asked.

    Nothing in the folder where the command was typed stands in for a package of ours: not `methods`, not `reports`.
    """
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    values = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
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


def work(job: Job) -> None:
    """Train cells until none is left that this worker could take.

    Raises:
        SystemExit: the job is exclusive, and some of its cells are not done in the end.
    """
    if job.visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.visible_devices  # before torch is imported
    if job.parent_pid:
        threading.Thread(target=_end_with, args=(job.parent_pid,), daemon=True).start()
    stop_on_sigterm()
    from bench.engine.distributed import join
    from bench.plugins import import_plugin

    for plugin in job.options.imports:
        import_plugin(plugin)
    folder = ResultsFolder(job.results).grid(job.grid)
    cells = [Cell.model_validate(cell) for cell in job.cells]
    with join(job.processes, job.options.device) as team:
        options = replace(job.options, device=team.device(job.options.device))
        if team.leads and job.check_s is not None:
            check(cells, folder, options, job.check_s)
            return
        if team.leads:
            if options.check:
                _check(cells, folder, options)
            _lead(cells, folder, options, team, job.exclusive)
        else:
            assist(folder, options, team)
    missing = [cell.id for cell in cells if not folder.cell(cell.id).done()]
    if job.exclusive and missing:
        sys.exit(f"not done: {', '.join(missing)}")  # so that what depends on this job does not start


def _check(cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
    """Try the cells out, and name as failed those whose kind fails: nobody trains them."""
    try:
        name_failed(cells, folder, check(cells, folder, options), options)
    except OSError as error:  # a full disk, say: the trainings name it
        print(one_line(f"the cells were not tried out: {error}"), file=sys.stderr)


def assist(folder: GridFolder, options: Options, team: Team) -> None:
    """Train each cell that the leader of the team sends, until it sends none."""
    from bench.engine.train import train

    while spec := team.receive():
        cell = Cell.model_validate(spec)
        try:
            train([cell], folder, options, team)
        except Exception as error:
            _record_failure(cell, folder, error, team)
            raise


def _lead(left: list[Cell], folder: GridFolder, options: Options, team: Team, exclusive: bool) -> None:
    while left:
        outcomes = [_take(left, index, folder, options, team) for index in range(len(left))]
        wanted = ("waiting", "locked") if exclusive else ("waiting",)
        waiting = [(cell, outcome) for cell, outcome in zip(left, outcomes, strict=True) if outcome in wanted]
        left = [cell for cell, _ in waiting]
        locked = {cell.id for cell, outcome in waiting if outcome == "locked"}
        if "tried" not in outcomes and not _wait(left, locked, folder):
            break


def _wait(cells: Collection[Cell], locked: set[str], folder: GridFolder) -> bool:
    """Wait while others train what these cells need: themselves where they are locked, else their teachers.

    Returns:
        Whether one of them is worth another try. None is where nobody trains what it needs: that will not come.
    """
    teachers = {name for cell in cells if cell.id not in locked for name in cell.waits_for}
    # Locks are asked for first: what ends between the two questions is settled, and is not taken for lost.
    held = {name for name in locked | teachers if folder.cell(name).locked()}
    settled = {name for name in teachers - held if folder.cell(name).settled()}
    if locked - held or any(settled.issuperset(cell.waits_for) for cell in cells if cell.id not in locked):
        return True
    pacing, waits = Pacing(POLL_S), Waits(Log())
    while held:
        waits.look(held, folder)
        time.sleep(pacing.pause_s)
        with pacing.look():
            if not all(folder.cell(name).locked() for name in held):
                return True
    return False


def _take(left: Sequence[Cell], index: int, folder: GridFolder, options: Options, team: Team) -> Outcome:
    """Train the cell at this index of `left` if it is free now.

    With `options.together`, and on a GPU, it takes along what may train in lock-step with it out of those after it: what is
    done is not looked at again.

    Returns:
        'tried'; 'waiting' for its teacher; 'locked' by another; or 'passed': settled, or its folder cannot be used.
    """
    cell = left[index]
    place = folder.cell(cell.id)
    if place.settled():
        return "passed"
    try:
        teachers = [teacher for name in cell.waits_for if not (teacher := folder.cell(name)).done()]
        if any(not teacher.settled() for teacher in teachers):
            return "waiting"
        if teachers:
            unreadable = teachers[0].unreadable()
            place.write_failure(
                f"its teacher {teachers[0].id} {f'is unusable: {unreadable}' if unreadable else 'failed'}", again=True
            )
            return "passed"
        with contextlib.ExitStack() as locks:
            locks.enter_context(place.lock())
            if place.settled():
                return "passed"
            rest = left[index:]  # copied only where a training follows
            most = _most_together(rest, options) if team.size == 1 else 1
            group = _group(cell, rest, folder, locks, most, options)
            _try(group, folder, options, team)
            return "tried"
    except TimeoutError:
        return "locked"
    except (OSError, RefusedError, BarredError) as error:
        print(one_line(f"{cell.id}: {error}"), file=sys.stderr)
        with contextlib.suppress(OSError, ValueError):  # else the dispatcher sees that nothing came of it
            place.write_failure(f"its folder cannot be used: {error}", again=True)
        return "passed"


def _most_together(left: Sequence[Cell], options: Options) -> int:
    """How many cells may train in lock-step: on a GPU, where it is the default, so many that every worker gets its share."""
    from bench.engine.branches import MOST
    from bench.engine.device import resolve_device

    if options.apart or resolve_device(options.device).type == "cpu":
        return len(left) if options.together and not options.apart else 1
    return MOST if options.together else min(MOST, -(-len(left) // (options.neighbours + 1)))


def _group(
    cell: Cell, left: Sequence[Cell], folder: GridFolder, locks: contextlib.ExitStack, most: int, options: Options
) -> list[Cell]:
    """This cell and others of `left` that may train in lock-step with it now, at most so many; the others' locks are taken.

    A teacher for which other workers wait is not slowed down by company. A single worker of a GPU gives it some: its steps
    alone leave the GPU idle.
    """
    from bench.engine.device import resolve_device
    from bench.engine.lockstep import may_join

    group = [cell]
    if most == 1:
        return group
    on_gpu = resolve_device(options.device).type == "cuda"
    awaited = set() if on_gpu and not options.neighbours else {name for other in left for name in other.waits_for}
    if cell.id in awaited:
        return group
    for other in left:
        if len(group) == most:
            break
        place = folder.cell(other.id)
        ready = all(folder.cell(name).done() for name in other.waits_for)
        if other.id in awaited or not ready or not may_join(group, other, several_streams=on_gpu) or place.settled():
            continue
        with contextlib.suppress(TimeoutError, OSError):
            locks.enter_context(place.lock())
            if not place.settled():
                group.append(other)
    return group


def _try(group: list[Cell], folder: GridFolder, options: Options, team: Team) -> None:
    """Train cells in lock-step, or the only one; where a group fails, fewer of its cells, or each alone."""
    for cell in group:
        if folder.cell(cell.id).begin_attempt() > ATTEMPTS:
            error = f"{ATTEMPTS} workers died on it before it could save anything: killed, out of memory, or out of time"
            error += "; it saves when an epoch ends, --checkpoint-s seconds after the last time"
            folder.cell(cell.id).write_failure(error, again=True)
    group = [cell for cell in group if not folder.cell(cell.id).settled()]
    if not group:
        return
    for part in _train(group, folder, options, team):
        if left := [cell for cell in part if not folder.cell(cell.id).settled()]:
            for cell in left:
                folder.cell(cell.id).end_attempts()
            _try(left, folder, options, team)


def _train(group: list[Cell], folder: GridFolder, options: Options, team: Team) -> list[list[Cell]]:
    """Train the group; returns the groups in which its cells are to be tried instead: none, or halves, or each cell alone."""
    from bench.engine.train import train

    with _log_to([folder.cell(cell.id).log_handler() for cell in group]) as log:
        try:
            for cell in group:
                team.send(cell.model_dump(mode="json"))
            with no_exit():
                train(group, folder, options, team)
            log.info("finished")
            return []
        except Exception as error:  # whatever a cell does wrong, its siblings go on
            uncaptured = type(error).__name__ == "CaptureError"  # of `bench.engine.capture`, which imports torch
            ruined = uncaptured or type(error).__name__ == "AcceleratorError"  # nothing on a GPU works any more in this process
            if uncaptured:  # the next worker goes on without recording
                log.warning("%s; a new process takes the steps one by one", error)
                for cell in group:
                    folder.cell(cell.id).write_eager(str(error))
                    folder.cell(cell.id).end_attempts()  # none of them is at fault
                raise
            if len(group) == 1:
                log.exception("failed")
                _record_failure(group[0], folder, error, team)
                if team.size > 1 or ruined:  # of a team, the others may be anywhere in a step: a new worker goes on
                    raise
                return []
            if ruined:  # no cell is named as failed; attempts are counted
                raise
            parts = _parts(group, error)
            name, sizes = type(error).__name__, ", ".join(str(len(part)) for part in parts)
            log.warning("%d cells in lock-step failed (%s: %s); now in groups of %s", len(group), name, error, sizes)
            return parts
        except BaseException:
            log.info("stopped")
            if not at_time_limit.is_set():  # the cell is not at fault when a worker is stopped; a time limit may be too short
                for cell in group:
                    folder.cell(cell.id).end_attempts()
            raise


def _parts(group: list[Cell], error: Exception) -> list[list[Cell]]:
    """The groups in which to try the cells of a group that failed: those that the error names, halves, or each alone."""
    if isinstance(error, SplitError):
        return [[cell for cell in group if cell.id in ids] for ids in error.parts]
    size = -(-len(group) // 2) if wants_memory(error) else 1
    return [group[start : start + size] for start in range(0, len(group), size)]


def _record_failure(cell: Cell, folder: GridFolder, error: Exception, team: Team) -> None:
    place = folder.cell(cell.id)
    if team.size > 1 and place.failure():
        return  # of several processes the first has met the cause, the others its absence
    message = described(error)
    message += "; recipe.accumulate: 2 would take each batch in two parts" * wants_memory(error)
    place.write_failure(message, traceback.format_exc(), not_its_fault(error))


@contextlib.contextmanager
def _log_to(handlers: Sequence[logging.Handler]) -> Iterator[logging.Logger]:
    log = logging.getLogger("bench.records.cell")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _end_with(process_id: int) -> None:
    """End this process when another has ended, however it did: what is lost is done again from the checkpoint."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(3)
