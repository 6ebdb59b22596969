"""What a run looks at before anything is trained: tools, data, and teachers that were not trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.data import load
from bench.engine import visualizers
from bench.engine.hooks import user_hook
from bench.engine.lockstep import alone_because
from bench.engine.teacher_accuracy import measure_missing
from bench.errors import UserError
from bench.records.cell import Cell, digest
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.records.teacher import accuracy_lines
from bench.screen import Screen


def try_tools(options: Options) -> None:
    """Build the user's hooks, and write with visualizer backends."""
    for name in options.hooks:
        user_hook(name)
    for name in options.visualize:
        visualizers.try_out(name)


def check_data(cells: Sequence[Cell], options: Options) -> None:
    """Read the data of cells, or download them.

    Raises:
        UserError: they cannot be read.
    """
    for data in {digest(cell.data): cell.data for cell in cells}.values():
        try:
            load(data, options.data_root)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(str(error)) from None


def measure_teachers(cells: Sequence[Cell], folder: GridFolder, options: Options, here: bool, console: Screen) -> None:
    """Print how good the teachers are that were not trained here; measured here, or on a cluster by its jobs."""
    if here:
        try:
            measure_missing(cells, folder, options)
        except Exception as error:  # its own cells will fail for the same reason; others can be trained
            console.print(f"a teacher could not be measured: {error}")
    for line in accuracy_lines(cells, folder.results.teacher_accuracy):
        console.print(line, style="yellow" if line.startswith("warning") else None)


def name_who_trains_alone(cells: Sequence[Cell], console: Screen) -> None:
    """Print which methods cannot train in lock-step, and why."""
    reasons = {cell.label: reason for cell in cells if (reason := alone_because(cell))}
    for label, reason in reasons.items():
        console.print(f"alone: {label}: {reason}")


def for_workers(options: Options) -> Options:
    """The same options for processes that may work in another folder."""
    return replace(
        options,
        data_root=str(Path(options.data_root).resolve()) if options.data_root else None,
        visualize=tuple(visualizers.backend(name) for name in options.visualize),
        imports=tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in options.imports),
    )
