"""Trainings as commands for other schedulers, and as scripts for sbatch that somebody may read and submit. No torch here."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.jobs.worker import PROJECT
from bench.records import files
from bench.records.cell import Cell

TEAM = (  # so that a cell's processes find each other under srun
    'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) WORLD_SIZE=$SLURM_NTASKS",
)
ONE_OF_TEAM = """bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' _ """
Commands = Callable[[Sequence[str]], list[str]]  # of the ids of cells: the words of a command that trains them


def words(given: Mapping[str, Any], precision: str | None) -> Commands:
    """Makes commands that train cells of a grid in their process, and their teachers where nobody else does.

    Args:
        given: the command line of `plan`: "grid", "results", "overrides", "data_root", "device", "imports".
        precision: of the grid's cells, where its file leaves it to the device; another machine must not choose another.
    """
    grid = Path(given["grid"])
    start = [sys.executable, str(PROJECT / "run_bench.py"), "run", str(grid.resolve()) if grid.is_file() else given["grid"]]
    overrides = [*given["overrides"], *([f"precision={precision}"] if precision else [])]
    imports = [str(Path(name).resolve()) if name.endswith(".py") else name for name in given["imports"]]
    data_root = [str(Path(given["data_root"]).resolve())] if given["data_root"] else []
    options = {"--set": overrides, "--data-root": data_root, "--device": [given["device"]], "--import": imports}
    start += ["--results", str(Path(given["results"]).resolve())]
    start += [word for name, values in options.items() for value in values for word in (name, value)]
    start += ["--cluster", "debug", "--no-check"]
    return lambda cells: [*start, *(word for cell in cells for word in ("--cell", cell))]


def commands(cells: Sequence[Cell], make: Commands) -> list[str]:
    """A line for each cell, teachers first."""
    teachers = {name for cell in cells for name in cell.waits_for}
    lines = []
    for cell in sorted(cells, key=lambda cell: cell.id not in teachers):
        python, *rest = make([cell.id])
        several = cell.recipe.processes
        start = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(several)] if several > 1 else [python]
        lines.append(command_line([*start, *rest]))
    return lines


def command_line(words: Sequence[str]) -> str:
    r"""Words as a shell reads them; bytes of a file's name that are no text as in $'\xff'."""
    return " ".join(shlex.quote(word) if word.isprintable() else _spelled(word) for word in words)


def _spelled(word: str) -> str:
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.,:=+-")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


def sbatch_script(
    jobs: Sequence[Sequence[Cell]], name: str, folder: Path, parameters: Mapping[str, Any], threads: int, make: Commands
) -> str:
    """The script of one array, with the options that a submission would have. At its time limit a job ends by SIGTERM.

    Args:
        jobs: of the array, each with its cells.
        folder: for the jobs' logs; it must exist when they start.
        parameters: as submitit names them.
        threads: of each process.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    parameters = dict(parameters)
    delay_s = parameters.pop("signal_delay_s")
    ids = [" ".join(f"--cell {cell.id}" for cell in job) for job in jobs]
    setup = [*parameters.pop("setup", []), f"export OMP_NUM_THREADS={threads}"]
    several = jobs[0][0].recipe.processes > 1
    setup += [*(TEAM if several else ()), f"cells=({' '.join(map(shlex.quote, ids))})  # of each job"]
    extra = {**parameters.pop("additional_parameters"), "signal": f"TERM@{delay_s}"}
    command = (ONE_OF_TEAM if several else "") + command_line(make([])) + " ${cells[$SLURM_ARRAY_TASK_ID]}"
    text: str = _make_sbatch_string(
        command=command,
        folder=folder,
        job_name=name,
        map_count=len(jobs),
        setup=setup,
        additional_parameters=extra,
        **parameters,
    )
    return text.replace("export SUBMITIT_EXECUTOR=slurm\n", "")


def submission(arrays: Sequence[tuple[Sequence[Sequence[Cell]], tuple[str, ...]]], files: Sequence[str]) -> str:
    """A shell script that submits the arrays in order, each behind the teachers that it waits for.

    Args:
        arrays: (jobs, the cells it depends on) each.
        files: their scripts.
    """
    places = {
        cell.id: (number, job) for number, (jobs, _) in enumerate(arrays) for job, each in enumerate(jobs) for cell in each
    }
    lines = ["#!/bin/bash", "# Submits the arrays in order. Submitted again, it goes on with what is not done.", "set -e"]
    lines.append('cd "$(dirname "$0")"')
    for number, ((_, teachers), file) in enumerate(zip(arrays, files, strict=True)):
        after = ""
        if teachers:
            jobs = (places[teacher] for teacher in teachers)
            awaited = "".join(f":${{array_{array}}}_{job}" for array, job in jobs)
            after = f"--dependency=afterok{awaited} --kill-on-invalid-dep=yes "
        lines.append(f"array_{number}=$(sbatch --parsable {after}{file})")
    return "\n".join(lines) + "\n"


def write(scripts: Mapping[str, str], folder: Path) -> list[str]:
    """Write scripts; returns their paths.

    Raises:
        RefusedError: what stands in the place of one is no file.
    """
    for name, text in scripts.items():
        files.write(folder / name, os.fsencode(text))
        (folder / name).chmod(0o755)
    return [f"{folder / name}" for name in scripts]
