#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""What accuracy does each way of distilling a network buy, and what does it cost to train?

run_bench.py run quick        train the default grid, measure costs, write the report
run_bench.py list methods     what there is to compare
"""

from __future__ import annotations

import bench.environment

if __name__ == "__main__":
    bench.environment.use_own()  # before an import that needs a package or a newer Python

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.arguments import (
    ABLATE,
    ALL,
    AS,
    CELL,
    CLUSTER,
    CLUSTER_OPTIONS,
    DATA_ROOT,
    FINISHED,
    GRAMS,
    GRID,
    JOBS,
    JSON,
    KIND,
    LISTS,
    MAPS,
    MEASURING,
    PLANNING,
    PLUGINS,
    REPORT,
    RESULTS,
    SOURCE,
    SPEED,
    THREADS,
    TO,
    TOOLS,
    TRAINING,
    WATCH,
    WEIGHTS,
)
from bench.command_line import Given, argument, console, parser, verb, write
from bench.command_line import run as run_verb

# Everything else is imported by the verb that needs it: help is instant, and what only reads results needs no torch.
if TYPE_CHECKING:
    from bench.jobs.base import Backend
    from bench.plan.grid import Grid
    from bench.records.folders import GridFolder, ResultsFolder
    from bench.records.options import Options

# What verbs share


def backend(given: Given) -> Backend:
    from bench.jobs import cluster_file

    import_plugins(given)  # they may bring a backend
    return cluster_file.read(given.cluster, {key: getattr(given, key, None) for key in CLUSTER_OPTIONS})


def options(given: Given, **more: int) -> Options:
    from bench.records.options import Options

    return Options.of({key: value for key, value in vars(given).items() if key != "threads"} | more)


def planned(given: Given, backend: Backend | None = None) -> tuple[Grid, GridFolder]:
    from bench import run

    return run.plan(given.grid, given.results, given.overrides, options(given), backend)


def results(given: Given) -> ResultsFolder:
    from bench.records.folders import ResultsFolder

    return ResultsFolder(given.results)


def finished(given: Given) -> GridFolder:
    """The grid's folder of results, named in --results or as a folder."""
    from bench.records.cell import named_after
    from bench.records.folders import ResultsFolder

    path = Path(given.grid)
    if path.is_dir() and (path / "manifest.json").exists():
        return ResultsFolder(path.resolve().parent).grid(path.resolve().name)
    return results(given).grid(named_after(path.stem if path.suffix in (".yaml", ".yml") else given.grid))


def import_plugins(given: Given) -> None:
    from bench.plugins import import_plugin

    for plugin in given.imports:
        import_plugin(plugin)


# Verbs that show what there is


@verb("List what there is of a kind", PLUGINS, KIND)
def list_(given: Given) -> None:
    from bench.plan import catalogue

    import_plugins(given)
    for what in [given.what] if given.what else LISTS:
        console().print(catalogue.table(what))


@verb("Show a method's card, a model, data set, grid or recipe, or a finished cell", RESULTS, PLUGINS, argument("name"))
def show(given: Given) -> None:
    from bench.plan import catalogue

    import_plugins(given)
    console().print(catalogue.card(given.name, results(given)))


# Verbs that plan, train and measure


@verb("Show what a grid consists of, what is done, and what the rest will cost", RESULTS, GRID, PLUGINS, CLUSTER, PLANNING)
def plan(given: Given) -> int:
    from bench.jobs import scripts
    from bench.plan import equal_cost, estimate, power

    grid, folder = planned(given, jobs := backend(given))
    left = [cell for cell in grid.cells if not folder.cell(cell.id).settled()]
    make = scripts.words(vars(given), grid.precision_of_device)
    if given.commands:
        print("\n".join(scripts.commands(left, make)))
        return 0
    unreadable = estimate.show(grid, folder, console(), given.grams_per_kwh)
    power.show(grid, folder, given.detect, given.spread, console())
    if given.equal_cost:
        equal_cost.show(grid, folder, console())
    at = Path(given.dry_run or "").resolve()
    for line in jobs.outline(left) + (scripts.write(jobs.scripts(left, grid.name, at, make), at) if given.dry_run else []):
        console().print(line)
    return 1 if unreadable else 0


@verb("Try each method out on each pair, on two images; train nothing", RESULTS, GRID, PLUGINS, CLUSTER, TOOLS)
def check(given: Given) -> int:
    from bench import run

    jobs = backend(given)
    return 1 if run.check(given.grid, given.results, given.overrides, options(given), jobs, console()) else 0


@verb("Train what is missing of a grid, measure costs, write the report", RESULTS, GRID, PLUGINS, CLUSTER, JOBS, TRAINING)
def run(given: Given) -> int:
    from bench import run
    from bench.jobs.worker import stop_on_sigterm

    stop_on_sigterm()
    grid = given.grid, given.results, given.overrides, options(given), backend(given)
    wishes = {"wait": given.wait, "retry": given.retry, "force": given.force, "keep": given.keep, "costs": not given.no_cost}
    wishes |= {"cost_minutes": given.cost_minutes, "only": given.only}
    outcome = run.run(*grid, **wishes, console=(screen := console()))
    if outcome.done and not (given.no_report or given.only):
        from reports import terminal

        terminal.report(outcome.folder, screen)
    return 0 if outcome.complete else 1


@verb("Measure what a step of each method costs; leave the machine alone meanwhile", RESULTS, GRID, PLUGINS, MEASURING)
def cost(given: Given) -> None:
    from bench import run

    grid, folder = planned(given)
    run.begin(grid, folder)
    settings = options(given, threads=given.threads)
    if not run.measure(grid.timed, folder, settings, given.force, console(), given.cost_minutes):
        console().print("measured before, on this hardware; --force measures again")


@verb(SPEED, GRID, THREADS, ABLATE, JSON, lambda sub: sub.set_defaults(grid="speed", imports=[], results="results"))
def speed(given: Given) -> None:
    from bench.measure import speed
    from reports.speed import tables

    grid, folder = planned(given)
    settings = options(given, threads=given.threads)
    measured = speed.measure(grid, folder, settings, given.ablate, log=lambda line: print(line, file=sys.stderr))
    found = speed.as_json(measured)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for part in tables(found):
        console().print(part)


# Verbs that read results; none of them but `maps` imports torch


@verb("Show how far a run is: methods by seeds, with accuracies", RESULTS, FINISHED, JSON, WATCH)
def status(given: Given) -> int:
    from bench.jobs import base
    from bench.plan import seeds
    from bench.records import progress

    folder, screen = finished(given), console()

    def look(former: progress.Status | None = None) -> progress.Status:
        return progress.status(folder, *base.try_queue(folder), former)

    found = progress.watch(look, screen, lambda: seeds.go_on(folder)) if given.watch else look()
    print(json.dumps(found.as_json(), indent=1)) if given.json else found.show(screen, seeds.lines(folder))
    return 1 if "unreadable" in found.counts else 0


@verb("End a grid's jobs on the cluster, and no others; what is done is kept", RESULTS, FINISHED)
def cancel(given: Given) -> None:
    from bench.jobs import base

    folder = finished(given)
    folder.manifest()  # names what there is where the grid is not known
    print(f"{base.cancel(folder)} cells taken out of the queue; what is done is kept")


@verb("Print a cell's log and, where it failed, why", RESULTS, CELL)
def logs(given: Given) -> None:
    cell = results(given).find(given.cell)
    log, failure = cell.log(), cell.failure() or {}
    nothing = "no log: the cell was copied from elsewhere, or has not started"
    write(*(failure.get("trace") or nothing if log is None else log).split("\n"))
    if failure:
        write(f"failed at {failure.get('when')}: {failure.get('error')}")


@verb("Write a grid's tables, figures and page, or with --site those of all grids", RESULTS, REPORT, GRAMS)
def report(given: Given) -> int | None:
    from bench.records import upkeep
    from reports import site, terminal

    look = {"compare": given.compare, "style": given.style, "grams_per_kwh": given.grams_per_kwh}
    if given.site:
        names = results(given).grids()
        folders = [finished(given)] if given.grid else [results(given).grid(name) for name in names]
        hidden = [] if given.grid else upkeep.hidden(results(given))
        return site.report(folders, Path(given.site), console(), hidden, **look)
    given.grid = given.grid or "quick"
    terminal.report(finished(given), console(), **look)
    return 0


@verb("Draw where trained students look (Grad-CAM++), side by side, for the report", RESULTS, PLUGINS, MAPS, DATA_ROOT)
def maps(given: Given) -> None:
    from bench.measure.gradcam import look
    from reports.maps import draw

    import_plugins(given)
    cells = [results(given).find(name) for name in given.cells]
    looks = look(cells, given.images, given.data_root)
    name = "-".join([*(cell.id.rpartition("-")[2] for cell in cells), *map(str, given.images)])
    write(str(cells[0].grid.write_map(f"{name[:120]}.png", draw(looks.images, looks.classes, looks.networks))))


@verb("Write a finished cell's weights as safetensors, or as other code reads them", RESULTS, CELL, TO, AS)
def export(given: Given) -> None:
    cell = results(given).find(given.cell)
    if given.layout:
        from bench.models.exports import write_repdistiller

        write(str(write_repdistiller(cell, Path(given.to or f"{cell.id}.pth"))))
        return
    write(str(cell.export(Path(given.to or f"{cell.id}.safetensors"))))


@verb("Remove scratch files of finished cells, and weights with --weights", RESULTS, FINISHED, WEIGHTS)
def clean(given: Given) -> None:
    print(f"{finished(given).clean(given.weights) / 2**20:.1f} MiB freed")


@verb("Check every record, curve, weight file and cost of a grid", RESULTS, FINISHED, ALL)
def verify(given: Given) -> int:
    from bench.records import upkeep

    folders = upkeep.every(results(given)) if given.all else [finished(given)]
    problems = upkeep.hidden(results(given)) if given.all else []
    problems += [problem for folder in folders for problem in upkeep.verify(folder)]
    for folder in folders:
        for note in upkeep.notes(folder):
            write(f"note: {folder.name}: {note}")
    for problem in problems:
        write(f"{problem.path}: {problem.reason}")
    print(f"{len(folders)} grids, {len(problems)} problems" if given.all else f"{len(problems)} problems")
    return 1 if problems else 0


@verb("Copy the results of another folder; name what contradicts ours", RESULTS, SOURCE)
def merge(given: Given) -> int:
    from bench.records import upkeep
    from bench.records.folders import ResultsFolder

    copied, conflicts = upkeep.merge(results(given), ResultsFolder(given.source))
    for conflict in conflicts:
        write(f"{conflict.path}: {conflict.reason}")
    print(f"{copied} copied, {len(conflicts)} conflicts")
    return 1 if conflicts else 0


def main(arguments: list[str] | None = None) -> int:
    called = Path(sys.argv[0]).name
    top = parser("distillation-bench" if called == "distillation-bench" else "run_bench.py", __doc__)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could be typed next
        import argcomplete

        argcomplete.autocomplete(top)
    return run_verb(top.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
