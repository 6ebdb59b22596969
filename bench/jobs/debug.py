"""Cells in this process, one after the other: for debuggers, and for processes that torchrun starts. No torch here."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.errors import UserError
from bench.jobs.base import Watch, register
from bench.jobs.local import Launcher
from bench.jobs.worker import Job, Worker
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import Options

if TYPE_CHECKING:
    from bench.engine.distributed import Team


@register
class Debug(Launcher):
    """Trains in this process."""

    kind = "debug"

    @contextlib.contextmanager
    def team(self, device: str) -> Iterator[Team | None]:
        if "WORLD_SIZE" not in os.environ:
            yield None
            return
        from bench.engine.distributed import join

        with join(int(os.environ["WORLD_SIZE"]), device) as team:
            yield team

    def check_cells(self, cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
        from bench.engine.distributed import check_started

        for processes in {cell.recipe.processes for cell in cells}:
            check_started(processes)

    def launch(self, job: Job, cells: int, watch: Watch) -> str:
        import submitit

        options = replace(job.options, threads=self.threads)
        with tempfile.TemporaryDirectory() as folder:
            debug = submitit.DebugExecutor(folder).submit(Worker(), replace(job, options=options))
            error = debug.exception()
            if type(error).__name__ == "CaptureError":  # of `bench.engine.capture`, which imports torch
                raise UserError(f"{error}; this process must end. `run` again: then steps are taken one by one")
            if error:
                raise error
        return ""
