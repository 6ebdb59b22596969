"""The story of a run: plan a grid, train what is missing of it, measure what its steps cost.

    from bench import run

    record = run.fit("digits", student="resnet8", method="tfd", recipe="digits")   # one training
    outcome = run.run("quick")                                                     # a grid, shipped or from a file
    failed = run.check("mine.yaml")                                                # a trial of it, which trains nothing

They write to a results folder, and train nothing that is done there. Nothing is printed unless a console is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.engine import beforehand
from bench.engine.code import own_code
from bench.engine.train import commit
from bench.errors import UserError
from bench.jobs import check as checks
from bench.jobs.base import Backend
from bench.jobs.debug import Debug
from bench.jobs.local import Local
from bench.measure.costs import measure
from bench.plan import choice, grid_file, seeds
from bench.plan.expand import expand
from bench.plan.grid import Grid
from bench.plugins import import_plugin
from bench.records import upkeep
from bench.records.cell import Cell
from bench.records.cell_folder import CellFolder
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import COST_MINUTES, Options
from bench.records.progress import Progress, name_failures
from bench.records.record import Record
from bench.screen import Screen

SILENT = Screen(quiet=True)
CHECK_S = 600.0  # for all trials of a check that was asked for


class Outcome(NamedTuple):
    """What a run has come to."""

    folder: GridFolder
    states: dict[str, str]  # by cell; empty where another process leads, or jobs go on after the call
    ended: bool = True  # whether no jobs go on

    @property
    def done(self) -> list[str]:
        """Ids of the cells that are done."""
        return [cell_id for cell_id, state in self.states.items() if state == "done"]

    @property
    def complete(self) -> bool:
        """Whether nothing has failed or is missing of what has ended."""
        return len(self.done) == len(self.states)


def plan(
    grid: str,
    results: str | Path = "results",
    overrides: Iterable[str] = (),
    options: Options | None = None,
    backend: Backend | None = None,
) -> tuple[Grid, GridFolder]:
    """The cells of a grid, and the folder of their results. Of sequential seeds, those that results ask for so far.

    Args:
        grid: a shipped grid's name, or a grid file.
        overrides: `key.key=value` each, over the file's contents.
        backend: whose jobs will train the cells; its device decides what precision `auto` is.

    Raises:
        UserError: something in the grid file or the options is wrong.
    """
    options = options or Options()
    for plugin in options.imports:
        import_plugin(plugin)
    overrides = list(overrides)
    name, raw = grid_file.read(grid, overrides)
    device = backend.plans_for(options.device) if backend else options.device
    planned = expand(name, raw, options.data_root, device, grid_file.overridden(overrides))
    planned = replace(planned, file=grid_file.path_of(grid))
    folder = ResultsFolder(results).grid(name)
    return choice.settle(seeds.spend(planned, folder), folder), folder


def run(
    grid: str,
    results: str | Path = "results",
    overrides: Iterable[str] = (),
    options: Options | None = None,
    backend: Backend | None = None,
    *,
    wait: bool = False,
    retry: bool = False,
    force: bool = False,
    keep: bool = False,
    costs: bool = True,
    cost_minutes: float = COST_MINUTES,
    only: Collection[str] = (),
    console: Screen = SILENT,
) -> Outcome:
    """Train what is missing of a grid, then measure the costs of its steps.

    Args:
        grid, overrides: see `plan`.
        backend: who runs the jobs; default: processes of this machine.
        wait: on a cluster, stay until all is done.
        retry: train failed cells again.
        force: train finished cells again; their old records are set aside.
        keep: keep results that other code of the user's own made; else they are trained again.
        costs: measure what was not measured on this hardware.
        cost_minutes: for measuring, about; 0: no limit.
        only: ids of cells, or enough of them: these alone are touched, and their teachers; nothing is measured. Empty: all.

    Raises:
        UserError: something that was given is wrong; nothing was trained.
    """
    options = options or Options()
    backend = backend or Local(threads=options.threads)
    backend.check(options)
    with backend.team(options.device) as team:
        if team and not team.leads:
            folder = ResultsFolder(results).grid(grid_file.read(grid, overrides)[0])
            mine = replace(beforehand.for_workers(options), device=team.device(options.device), threads=backend.threads)
            for plugin in mine.imports:
                import_plugin(plugin)
            backend.assist(folder, mine, team)
            return Outcome(folder, {})
        planned, folder = plan(grid, results, overrides, options, backend)
        chosen = planned.with_teachers(only)
        beforehand.try_tools(options)
        _check_ready(_among(planned.cells, chosen), folder, options, backend, retry, force)
        begin(planned, folder)
        outcome = _run(planned, folder, options, backend, wait, retry, force, keep, console, chosen)
    if costs and outcome.done and not only:
        if backend.measures_here:
            planned = choice.settle(planned, folder)
            finished = [cell for cell in planned.timed if cell.id in outcome.done]
            measure(finished, folder, options, console=console, minutes=cost_minutes)
        else:  # its steps are nobody's cost
            console.print("costs are not measured here: run `cost` on an idle machine of the cluster")
    return outcome


def check(
    grid: str,
    results: str | Path = "results",
    overrides: Iterable[str] = (),
    options: Options | None = None,
    backend: Backend | None = None,
    console: Screen = SILENT,
) -> dict[str, str]:
    """Try out each method on each pair, in a worker, on two images; train nothing.

    A following `run` does not try again what passed. What has records, or passed before, is not tried.

    Returns:
        What failed and why: `{"kd on resnet8 taught by resnet8x4": "step: KeyError: 'x' (mine.py:23)"}`.

    Raises:
        UserError: see `run`.
    """
    started = time.monotonic()
    options = options or Options()
    backend = backend or Local(threads=options.threads)
    backend.check(options)
    planned, folder = plan(grid, results, overrides, options, backend)
    beforehand.try_tools(options)
    folder.check_writable()
    checks.prepare(planned.cells, folder, options)
    kinds, left = checks.kinds(planned.cells, options), checks.untried(planned.cells, folder, options)
    last_line = ""
    if left:
        with Progress(folder, {}, SILENT) as progress:
            lines = backend.try_out(list(left.values()), folder, beforehand.for_workers(options), progress, CHECK_S)
        last_line = lines.strip().rpartition("\n")[2]
    found = {kind: finding for kind, finding in folder.checks().items() if kind in left}
    if left and not found:
        raise UserError(f"no worker could be started: {last_line}")
    died = f"its process died: {last_line or 'killed, or out of memory'}"
    failed = {
        checks.what(left[kind]): died if finding.error is None else finding.error
        for kind, finding in found.items()
        if finding.error != ""
    }
    for name, reason in failed.items():
        console.print(f"failed  {name}: {reason}")
    counts = f"{len(found)} of {len(kinds)} tried out in {time.monotonic() - started:.1f} s, {len(failed)} failed"
    if len(left) < len(kinds):
        counts += f"; {len(kinds) - len(left)} have results, or passed before"
    console.print(counts)
    return failed


def fit(
    data: str | dict[str, Any],
    student: str | dict[str, Any],
    method: str | dict[str, Any] = "none",
    teacher: str | dict[str, Any] | None = None,
    recipe: str | dict[str, Any] = "crd",
    seed: int = 0,
    precision: str = "auto",
    results: str | Path = "results",
    name: str = "fit",
    options: Options | None = None,
) -> Record:
    """Train one student in this process, and its teacher first where its method needs one that is not trained yet.

    Args:
        data, student, method, teacher, recipe: as in a grid file: names, or mappings with their arguments.
        name: of the grid in the results folder to which the cell is added.

    Raises:
        UserError: something that was given is wrong, or a training failed; the message says why.
    """
    options = options or Options()
    raw: dict[str, Any] = {"data": data, "recipe": recipe, "precision": precision, "seeds": [seed], "methods": [method]}
    raw["pairs"] = [{"student": student, "teacher": teacher}]
    for plugin in options.imports:
        import_plugin(plugin)
    planned = expand(name, raw, options.data_root, options.device)
    teachers = {name for cell in planned.cells for name in cell.waits_for}
    students = [cell for cell in planned.cells if cell.id not in teachers]
    if planned.skipped or len(students) != 1:
        reason = planned.skipped[0].reason if planned.skipped else f"this names {len(students)}"
        raise UserError(f"fit trains one student: {reason}")
    folder = ResultsFolder(results).grid(name)
    beforehand.check_data(students, options)
    folder.check_writable()
    folder.request(planned.manifest(), commit=commit())
    _run(
        planned, folder, options, Debug(threads=options.threads), wait=True, retry=True, force=False, keep=False, console=SILENT
    )
    cell = folder.cell(students[0].id)
    if why := cell.unreadable():
        raise UserError(f"{cell.id}: {why}")
    record = cell.record()
    if record is None:
        raise UserError(f"{cell.id}: {(cell.failure() or {}).get('error', 'it was not trained')}")
    return record


def _among(cells: Iterable[Cell], only: Collection[str]) -> list[Cell]:
    """The cells of these ids; all where none is given."""
    return [cell for cell in cells if not only or cell.id in only]


def _check_ready(
    cells: Iterable[Cell], folder: GridFolder, options: Options, backend: Backend, retry: bool, force: bool
) -> None:
    """Refuse what cannot be trained while nothing of the results has been touched.

    Raises:
        UserError: the data cannot be read, or the backend refuses.
    """

    def is_left(cell: CellFolder) -> bool:
        return force or not cell.settled() or (retry and not cell.done())

    if left := [cell for cell in cells if is_left(folder.cell(cell.id))]:
        backend.check_cells(left, folder, options)
        beforehand.check_data(left, options)


def begin(grid: Grid, folder: GridFolder) -> None:
    """Add to the manifest in the results folder what the grid consists of.

    Raises:
        UserError: nothing can be written there, or the results there are those of another grid file.
    """
    folder.check_writable()
    folder.request(grid.manifest(), _file_of_this_name(grid, folder), commit())


def _file_of_this_name(grid: Grid, folder: GridFolder) -> str | None:
    """The grid file's path for the manifest, relative to the results folder; of a shipped grid "shipped:<name>".

    Raises:
        UserError: another file of this name was run here before, and is still there.
    """
    if grid.file is None:
        return None
    former, here = folder.grid_file(), folder.results.root.resolve()
    if former:
        name = former.removeprefix("shipped:")
        path = grid_file.path_of(name) if name != former else here / former
        if path.is_file() and not path.samefile(grid.file) and path.read_bytes() != grid.file.read_bytes():
            shown = f"{former}, seen from the results folder" if name == former else f"the shipped grid {name}"
            raise UserError(
                f"{folder.results.root / folder.name} holds results of another grid file of this name ({shown}): "
                f"rename {grid.file}, or choose another folder with --results"
            )
    return f"shipped:{grid.name}" if grid_file.is_shipped(grid.file) else os.path.relpath(grid.file.resolve(), here)


def rounds(
    grid: Grid, folder: GridFolder, prepare: Callable[[Sequence[Cell], bool], None]
) -> Iterator[tuple[Grid, list[Cell]]]:
    """The grid and its cells that are left to train, round by round: what a round has found decides about further seeds.

    Args:
        prepare: called with the cells that a round adds and their teachers, and whether they are the first.
    """
    prepared: set[str] = set()
    before: list[Cell] = []
    while True:
        grid = choice.settle(seeds.spend(grid, folder), folder)
        if new := {cell.id: cell for cell in grid.cells if cell.id not in prepared}:
            if prepared:
                begin(grid, folder)
            teachers = {name for cell in new.values() for name in cell.waits_for}
            prepare([cell for cell in grid.cells if cell.id in new or cell.id in teachers], not prepared)
            prepared |= new.keys()
            continue  # what was copied from another grid may be enough for a look
        left = [cell for cell in grid.cells if not folder.cell(cell.id).settled()]
        if not left or left == before:
            return
        yield grid, left
        before = left


def _run(
    grid: Grid,
    folder: GridFolder,
    options: Options,
    backend: Backend,
    wait: bool,
    retry: bool,
    force: bool,
    keep: bool,
    console: Screen,
    only: Collection[str] = (),
) -> Outcome:
    started, trained, looks = time.monotonic(), 0, seeds.Looks(folder, commit())
    for line in grid.warnings:
        console.print(line, style="yellow")
    for skip in grid.skipped:
        console.print(f"skipped {skip.what}: {skip.reason}")
    code = own_code(grid.cells)
    options = replace(options, code=tuple(code.items()))

    def prepare(cells: Sequence[Cell], first: bool) -> None:
        cells = _among(cells, only)  # what is not asked for stays as it is
        for line in upkeep.prepare(cells, folder, retry, force and first, code, keep):
            console.print(line)
        if options.check and first:
            checks.prepare(cells, folder, options)

    for asked, every in rounds(grid, folder, prepare):
        if not (cells := _among(every, only)):
            break
        looks.show(asked, console)
        beforehand.measure_teachers(cells, folder, options, backend.measures_here, console)
        if options.together:
            beforehand.name_who_trains_alone(cells, console)
        trained += len(cells)
        with Progress(folder, [cell.id for cell in asked.cells], console) as progress:
            if options.check and not backend.measures_here:  # its workers would say so when their turn in a queue comes
                if left := checks.untried(cells, folder, options):
                    backend.try_out(list(left.values()), folder, beforehand.for_workers(options), progress, checks.BUDGET_S)
                checks.name_failed(cells, folder, folder.checks(), options)
            handed = backend.train(cells, folder, beforehand.for_workers(options), wait, progress)
        if not handed.ended:
            more = " and further seeds" if grid.rule else ""
            console.print(f"`status` shows how far they are; `run` again hands over what was lost{more}, then reports")
            return Outcome(folder, {}, ended=False)
    grid = choice.settle(seeds.spend(grid, folder), folder)
    looks.show(grid, console)
    for line in choice.explained(grid, folder):
        console.print(line)
    asked_for = [cell.id for cell in _among(grid.cells, only)]
    states: dict[str, str] = {cell_id: folder.cell(cell_id).state() for cell_id in asked_for}
    ends, spent = list(states.values()), time.monotonic() - started
    counts = f"{ends.count('done')} of {len(ends)} done, {ends.count('failed')} failed"
    if "unreadable" in ends:
        counts += f", {ends.count('unreadable')} unreadable"
    console.print(f"{trained} were left; {counts}, {spent:.0f} s")
    if "failed" in ends:
        name_failures(folder, asked_for, console)
    return Outcome(folder, states)
