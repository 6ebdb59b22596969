"""Cells to Slurm through submitit: arrays of jobs, students behind their teachers. No torch here.

A launch's file, written before anything is submitted, says which job holds which cells; jobs are known by their names, which
carry the launch's id. Job ids are only used while Slurm shows them, and submitit's pickles are never read here: ids are given
out again after a controller lost its state, and so are pickles' names. The results folder alone says what is done.
"""

from __future__ import annotations

import contextlib
import operator
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import Field, field_validator

from bench.errors import UserError
from bench.jobs.base import ROUNDS, Backend, Handed, Queued, Watch, give_up, register
from bench.jobs.scripts import Commands, sbatch_script, submission
from bench.jobs.waits import Waits, held_by_others
from bench.jobs.worker import Job, Worker, environment
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.records.pacing import Pacing

ANSWER_S = 60  # to a client command; one without a controller needs about 10
ARRAY_SIZE = 1001  # where the cluster does not name it: Slurm's own default
THREADS = 4  # where the user gives none
WAIT_S = 2.0
FORGETS_S = 10  # Slurm may show a job this late

SET_ELSEWHERE = {  # of sbatch's options
    **dict.fromkeys(("array", "dependency", "job-name", "output", "error", "open-mode", "signal", "requeue"), "this program"),
    **dict.fromkeys(("kill-on-invalid-dep", "wckey", "wrap", "chdir", "parsable"), "this program"),
    **{name: f"`{name}` of the cluster file" for name in ("partition", "account", "qos", "constraint", "nodes")},
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "`processes` of the recipe"),
    **{"time": "`minutes`", "cpus-per-task": "`threads`", "gpus-per-node": "`gpus`", "mem": "`memory_gib`"},
}
Name = Annotated[str, Field(pattern=r"^[^\s'\"\\]+$")]


@register
class Slurm(Backend):
    """Submits arrays of jobs. Names of None and memory of None leave the choice to the cluster."""

    kind = "slurm"
    measures_here = False  # this machine only submits jobs

    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    minutes: int = Field(240, ge=1)  # time limit of a job; what is not done by then goes on from its checkpoint
    gpus: int = Field(1, ge=0, le=1)  # of each process
    memory_gib: float | None = Field(None, gt=0)  # of each process
    nodes: int = Field(1, ge=1)  # over which the processes of a cell are spread
    cells_per_job: int = Field(1, ge=1)  # trained one after the other, so that small cells share a start
    setup: list[str] = []  # shell lines before the worker starts, such as `module load cuda`
    sbatch: dict[str, str | int | float | bool] = {}  # further options of sbatch, `true` for one without a value

    @field_validator("sbatch")
    @classmethod
    def _further(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options that may be passed through, as sbatch names them.

        Raises:
            ValueError: one cannot be an option's name or value, or it is set elsewhere.
        """
        for name, value in options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"'{name}' is no long option of sbatch, such as mail-type")
            if name in SET_ELSEWHERE:
                raise ValueError(f"'{name}' is set by {SET_ELSEWHERE[name]}")
            if value is False or not str(value).isprintable() or not str(value).strip():
                raise ValueError(f"{name}: one line of text, a number, or true")
        return options

    def plans_for(self, device: str) -> str:
        from bench.engine.device import GPU_ELSEWHERE  # planning imports torch

        return GPU_ELSEWHERE if self.gpus else device

    def check(self, options: Options) -> None:
        if options.together and self.cells_per_job == 1:
            raise UserError("--together: a job of one cell has no company; set cells_per_job in the cluster file")

    def check_cells(self, cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
        _check_shared(folder.results.root.resolve())
        for processes in {cell.recipe.processes for cell in cells}:
            self._parameters(processes, after=[])
        max_array_size()  # Slurm answers

    def train(self, cells: Sequence[Cell], folder: GridFolder, options: Options, wait: bool, watch: Watch) -> Handed:
        count = self.submit(cells, folder, options)
        others = f"; {len(cells) - count} were in its hands before" if count < len(cells) else ""
        watch.note(f"{count} of {len(cells)} cells handed to Slurm{others}")
        if wait:
            try:
                self.follow(cells, folder, options, watch)
            except KeyboardInterrupt:
                watch.note("the jobs go on; `cancel` ends them")
                raise
        return Handed(count, ended=wait)

    def outline(self, cells: Sequence[Cell]) -> list[str]:
        """Jobs, arrays and dependencies, as if the queue were empty and took arrays of Slurm's default size."""
        arrays = list(plan(cells, set(), self.cells_per_job, ARRAY_SIZE))
        processes = [array[0][0].recipe.processes for array, _ in arrays]
        jobs = [len(array) for array, _ in arrays]
        hours = sum(map(operator.mul, jobs, processes)) * self.minutes / 60
        bound = f"{hours * self.gpus:.0f} GPU-hours" if self.gpus else f"{hours * (self.threads or THREADS):.0f} core-hours"
        lines = [f"{sum(jobs)} jobs in {len(arrays)} arrays; at their time limit of {self.minutes} minutes they take {bound}"]
        for number, (array, teachers) in enumerate(arrays, 1):
            each = f"{processes[number - 1] * self.gpus} GPUs, {processes[number - 1] * (self.threads or THREADS)} cores a job"
            after = f", after {' and '.join(teachers)}" if teachers else ""
            lines.append(f"array {number}: {len(array)} jobs, {sum(map(len, array))} cells, {each}{after}")
        return lines

    def scripts(self, cells: Sequence[Cell], grid: str, folder: Path, make: Commands) -> dict[str, str]:
        arrays = list(plan(cells, set(), self.cells_per_job, ARRAY_SIZE))
        found = {}
        for number, (array, _) in enumerate(arrays):
            parameters = self._parameters(array[0][0].recipe.processes, after=[])
            name = f"kd-{grid}-{number}"
            script = sbatch_script(array, name, folder, parameters, self.threads or THREADS, make)
            found[f"array-{number}.sh"] = script
        return found | {"submit.sh": submission(arrays, list(found))}

    def submit(self, cells: Sequence[Cell], folder: GridFolder, options: Options) -> int:
        """Hand over the cells that are neither settled nor in the queue; returns how many those are.

        Raises:
            UserError: Slurm does not answer or refuses.
        """
        queued = self.queue(folder)
        left = [cell for cell in cells if cell.id not in queued and not folder.cell(cell.id).settled()]
        if not left:
            return 0
        size = max_array_size()
        launch = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        arrays = list(plan(left, set(queued), self.cells_per_job, size))
        folder.write_launch(launch, self.kind, [[[cell.id for cell in job] for job in array] for array, _ in arrays])
        ids = {cell_id: job.job_id for cell_id, job in queued.items()}
        mine = replace(options, threads=self.threads or THREADS, neighbours=0)
        for number, (array, teachers) in enumerate(arrays):
            jobs = [Job.describe(cells_of_job, folder, mine, exclusive=True) for cells_of_job in array]
            after = [ids[teacher] for teacher in teachers if teacher in ids]
            found = self._submit(jobs, job_name(launch, number), folder.launch_folder(launch), after)
            ids |= {cell.id: job_id for job, job_id in zip(array, found, strict=True) for cell in job}
        return len(left)

    def _submit(self, jobs: list[Job], name: str, folder: Path, after: list[str]) -> list[str]:
        """Submit one array, which starts after the jobs of these ids; returns its jobs' ids."""
        import submitit

        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)  # `bench.jobs.worker.ATTEMPTS` bounds them
        executor.update_parameters(job_name=name, **self._parameters(jobs[0].processes, after))
        try:
            with environment(self.threads or THREADS), executor.batch():
                found = [executor.submit(Worker(), job) for job in jobs]
        except (
            subprocess.CalledProcessError,
            submitit.core.utils.FailedJobError,
            submitit.core.utils.FailedSubmissionError,
        ) as error:
            raise UserError(f"sbatch refused: {_last_line(str(error))}") from None
        return [job.job_id for job in found]

    def _parameters(self, processes: int, after: list[str]) -> dict[str, Any]:
        """Of an array whose cells are trained by so many processes, as submitit names them."""
        nodes = min(self.nodes, processes)
        if processes % nodes:
            raise UserError(f"nodes: {nodes} do not share {processes} processes (recipe.processes) evenly")
        wishes: dict[str, Any] = {
            "nodes": nodes,
            "ntasks_per_node": processes // nodes,
            "srun_args": ["--kill-on-bad-exit=1"],  # a process that waits for a dead one would wait for long
            "time": self.minutes,
            "cpus_per_task": self.threads or THREADS,
            "signal_delay_s": min(90, self.minutes * 15),
            "additional_parameters": {"requeue": True, **self.sbatch},
        }
        wishes |= {key: value for key in ("partition", "account", "qos", "constraint") if (value := getattr(self, key))}
        if self.gpus:
            wishes["gpus_per_node"] = self.gpus * processes // nodes
        if self.memory_gib:
            wishes["mem"] = f"{round(self.memory_gib * 1024 * processes / nodes)}M"
        if self.setup:
            wishes["setup"] = self.setup
        if self.jobs:
            wishes["array_parallelism"] = self.jobs
        if after:
            wishes["dependency"] = f"afterok:{':'.join(after)}"
            wishes["additional_parameters"]["kill-on-invalid-dep"] = "yes"
        return wishes

    def queue(self, folder: GridFolder) -> dict[str, Queued]:
        launches = {name: launch for name, launch in folder.launches().items() if launch.backend == self.kind}
        if not launches:
            return {}
        arrays = {job_name(name, number): each for name, found in launches.items() for number, each in enumerate(found.arrays)}
        answer = _call("squeue", "--me", "--array", "--noheader", "--format=%j|%i|%K|%T|%r")
        held = {}
        for line in answer.splitlines():
            name, job_id, index, state, reason = line.split("|", 4)
            element = int(index) if index.isdigit() else 0
            if name in arrays and element < len(arrays[name]):
                held.update(dict.fromkeys(arrays[name][element], Queued(job_id, state, reason)))
        return held

    def cancel(self, folder: GridFolder) -> int:
        held = self.queue(folder)
        ids = sorted({job.job_id for job in held.values()})  # as Slurm shows them now, of jobs with this grid's names
        for start in range(0, len(ids), 500):
            _call("scancel", "--me", *ids[start : start + 500])
        return len(held)

    def follow(self, cells: Sequence[Cell], folder: GridFolder, options: Options, watch: Watch) -> None:
        """Stay until every cell is done or failed, and hand over again what Slurm lost.

        Raises:
            UserError: Slurm refuses a job.
            KeyboardInterrupt: the jobs go on.
        """
        rounds, before, waits = 0, len(cells), Waits(watch)
        unseen_since = time.monotonic()
        left, pacing = list(cells), Pacing(WAIT_S)
        while True:
            with pacing.look():
                left = [cell for cell in left if not folder.cell(cell.id).settled()]
            if not left:
                break
            watch.update()
            time.sleep(pacing.pause_s)
            try:
                if queued := self.queue(folder):
                    unseen_since = time.monotonic()
                running = [cell_id for cell_id, job in queued.items() if job.state == "RUNNING"]
                elsewhere = held_by_others(running, folder, {job.job_id for job in queued.values()})
                waits.see(why_waiting(queued) | elsewhere)
            except UserError as error:  # a controller that is down comes back, and knows its jobs again
                unseen_since = time.monotonic()
                waits.see({str(error): [cell.id for cell in left]})
            if time.monotonic() - unseen_since < FORGETS_S:
                continue
            rounds = 0 if len(left) < before else rounds + 1
            before = len(left)
            if rounds > ROUNDS:
                break
            for cell in left:
                if failed := [name for name in cell.waits_for if folder.cell(name).failure()]:
                    with contextlib.suppress(OSError, ValueError):  # `give_up` names it
                        folder.cell(cell.id).write_failure(f"its teacher {failed[0]} failed", again=True)
            if count := self.submit(left, folder, options):
                again = f"{count} of {len(cells)} cells handed to Slurm again"
                watch.note(f"{again}: their jobs ended before they were done, see {_logs(folder)}")
            unseen_since = time.monotonic()
        give_up(left, folder, f"see the jobs' logs in {_logs(folder)}", watch)
        watch.update()


def why_waiting(queued: Mapping[str, Queued]) -> dict[str, list[str]]:
    """Of what does not run: the cells by Slurm's reason, such as JobHeldUser, Resources or "Nodes required ... are DOWN"."""
    found: dict[str, list[str]] = {}
    for cell_id, job in queued.items():
        if job.state != "RUNNING":
            reason = "" if job.reason == "None" else f": {job.reason}"
            found.setdefault(f"{job.state.lower()} in Slurm's queue{reason}", []).append(cell_id)
    return found


def plan(
    cells: Sequence[Cell], queued: set[str], cells_per_job: int, array_size: int
) -> Iterator[tuple[list[list[Cell]], tuple[str, ...]]]:
    """(jobs of an array, the cells it depends on), teachers' arrays first.

    A job that others depend on holds one cell. Students of the same teachers form arrays of their own, since a dependency
    belongs to a whole array.
    """
    coming = {cell.id for cell in cells} | queued
    teachers = {name for cell in cells for name in cell.waits_for}
    groups: dict[tuple[tuple[str, ...], bool, int], list[Cell]] = {}
    for cell in cells:
        awaited = tuple(name for name in cell.waits_for if name in coming)
        key = (awaited, cell.id in teachers, cell.recipe.processes)
        groups.setdefault(key, []).append(cell)
    for (awaited, teaches, _), group in sorted(groups.items(), key=lambda item: (bool(item[0][0]), not item[0][1])):
        each = 1 if teaches else cells_per_job
        jobs = [group[start : start + each] for start in range(0, len(group), each)]
        for start in range(0, len(jobs), array_size):
            yield jobs[start : start + array_size], awaited


def job_name(launch: str, number: int) -> str:
    return f"kd-{launch}-{number}"


def max_array_size() -> int:
    """Jobs that one array may hold.

    Raises:
        UserError: there is no Slurm here, or it does not answer.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else ARRAY_SIZE


def _logs(folder: GridFolder) -> Path:
    """Where submitit keeps the logs of this grid's jobs, as messages name it."""
    return folder.results.root / folder.name / "launches"


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
