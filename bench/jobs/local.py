"""Cells in bounded processes of this machine, through submitit. No torch here."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
from pydantic import Field

from bench.cores import usable_cores
from bench.errors import UserError
from bench.jobs.base import ROUNDS, Backend, Handed, Watch, give_up, register
from bench.jobs.waits import Waits
from bench.jobs.worker import POLL_S, Job, Worker, environment
from bench.records.cell import Cell
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options
from bench.records.pacing import Pacing


class Launcher(Backend):
    """Starts workers on this machine, as often as it takes until each cell is done or has failed."""

    @abstractmethod
    def launch(self, job: Job, cells: int, watch: Watch) -> str:
        """Start workers for a job of so many cells and wait for their end; returns the last lines of those that failed."""
        raise NotImplementedError

    def train(self, cells: Sequence[Cell], folder: GridFolder, options: Options, wait: bool, watch: Watch) -> Handed:
        idle_rounds, last_lines, waits, pacing = 0, "", Waits(watch), Pacing(POLL_S)
        left = list(cells)
        while idle_rounds < ROUNDS:
            with pacing.look():
                left = [cell for cell in left if not folder.cell(cell.id).settled()]
                all_locked = all(_locked(cell, folder) for cell in left)
            if not left:
                break
            if all_locked:  # by another `run`: wait, and train what it loses
                watch.update()
                waits.look(_with_teachers(left), folder)
                time.sleep(pacing.pause_s)
                continue
            last_lines = self._round(left, folder, options, watch)
            idle_rounds = 0 if any(folder.cell(cell.id).settled() for cell in left) else idle_rounds + 1
        give_up(left, folder, last_lines, watch)
        watch.update()
        return Handed(len(cells), ended=True)

    def try_out(self, cells: Sequence[Cell], folder: GridFolder, options: Options, watch: Watch, seconds: float) -> str:
        return self.launch(replace(Job.describe(cells, folder, options), check_s=seconds, processes=1), 1, watch)

    def _round(self, cells: Sequence[Cell], folder: GridFolder, options: Options, watch: Watch) -> str:
        last_lines = ""
        for processes in dict.fromkeys(cell.recipe.processes for cell in cells):  # all cells of a job have one number
            group = [cell for cell in cells if cell.recipe.processes == processes]
            job = Job.describe(group, folder, options)
            last_lines = self.launch(job, len(group), watch) or last_lines
        return last_lines


@register
class Local(Launcher):
    """Trains in processes of this machine: one a GPU, or one a core."""

    kind = "local"

    per_gpu: int = Field(1, ge=1)  # jobs that share a GPU; more than that wait

    def check_cells(self, cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
        gpus, _ = visible_gpus(options.device)
        most = max(cell.recipe.processes for cell in cells)
        if gpus and most > len(gpus):
            raise UserError(f"recipe.processes is {most}, and there are {len(gpus)} GPUs: use a cluster, or --device cpu")

    def launch(self, job: Job, cells: int, watch: Watch) -> str:
        import submitit

        gpus, device = visible_gpus(job.options.device)
        each = job.processes
        jobs, threads = self._shares(len(gpus), each, cells)
        options = replace(job.options, device=device, threads=threads, neighbours=jobs - 1)
        with tempfile.TemporaryDirectory() as logs, environment(threads):
            running = []
            try:
                for number in range(jobs):
                    executor = submitit.LocalExecutor(logs)
                    executor.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=each)
                    first = number * each % (len(gpus) // each * each) if gpus else 0
                    devices = ",".join(gpus[first : first + each])
                    mine = replace(job, options=options, parent_pid=os.getpid(), visible_devices=devices)
                    running.append(executor.submit(Worker(), mine))
                waits, folder = Waits(watch), ResultsFolder(job.results).grid(job.grid)
                ids = [Cell.model_validate(cell).id for cell in job.cells]
                while not all(task.done() for task in running):
                    watch.update()
                    waits.look(ids, folder)
                    time.sleep(POLL_S)
            finally:
                for task in running:
                    if not task.done():
                        _kill(int(task.job_id))
            errors = [path.read_text(errors="replace") for path in Path(logs).rglob("*_log.err")]
        return "".join(errors)[-4000:]

    def _shares(self, gpus: int, processes: int, cells: int) -> tuple[int, int]:
        """(jobs at a time, CPU threads of each of their processes)."""
        cores = usable_cores()
        slots = gpus // processes * self.per_gpu
        jobs = min(self.jobs or slots or max(1, cores // processes), slots or cells, cells)
        return jobs, self.threads or max(1, cores // (jobs * processes))


def _with_teachers(cells: Sequence[Cell]) -> list[str]:
    teachers = [name for cell in cells for name in cell.waits_for]
    return list(dict.fromkeys([*(cell.id for cell in cells), *teachers]))


def _locked(cell: Cell, folder: GridFolder) -> bool:
    """Whether somebody trains the cell, or a teacher of it."""
    return any(folder.cell(name).locked() for name in (cell.id, *cell.waits_for))


def _kill(process_id: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def visible_gpus(device: str) -> tuple[list[str], str]:
    """The CUDA devices that jobs may use, as CUDA_VISIBLE_DEVICES names them, and the device as each job knows it."""
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
