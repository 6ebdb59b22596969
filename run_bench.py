#!/usr/bin/env python3
"""What accuracy does each way of distilling a network buy, and what does it cost to train?

run_bench.py run quick        train the default grid, measure costs, write the report
run_bench.py list methods     what there is to compare
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Everything else is imported by the verb that needs it: help is instant, and what only reads results needs no torch.

LISTS = ("methods", "models", "data", "grids", "recipes")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="run_bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str, *groups: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=about, description=about)
        if name not in ("list", "speed"):
            sub.add_argument("--results", default="results", metavar="DIR", help="the results folder (default: results)")
        for group in groups:
            group(sub)
        return sub

    def plugins(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="FILE.py|MODULE",
            help="your own method, model or data set",
        )

    def grid(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("grid", nargs="?", default="quick", help="a shipped grid or a grid file (default: quick)")
        sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key")
        sub.add_argument("--data-root", metavar="DIR", help="where data sets lie or are downloaded to (default: data)")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def finished(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("grid", nargs="?", default="quick", help="a grid's name in the results folder, or a folder of results")

    def cell(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("cell", help="a cell's id, or enough of it")

    listing = verb("list", "List methods, models, data sets, grids or recipes", plugins)
    listing.add_argument("what", nargs="?", choices=LISTS, help="one kind only")
    show = verb("show", "Show a method's card, a model, data set, grid or recipe, or a finished cell", plugins)
    show.add_argument("name")

    def cluster(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--cluster",
            default="local",
            metavar="KIND|FILE",
            help="local (processes of this machine), debug (this process), slurm, or a cluster file",
        )
        sub.add_argument("--gpus", type=int, metavar="N", help="slurm: GPUs of a process, 0 or 1 (default: 1)")

    def jobs(sub: argparse.ArgumentParser) -> None:
        group = sub.add_argument_group("how jobs run")
        group.add_argument("--jobs", type=int, metavar="N", help="cells at a time (default: one a GPU, or one a core)")
        group.add_argument(
            "--threads", type=int, metavar="N", help="CPU threads of a process (default: cores / jobs; slurm: 4)"
        )
        group.add_argument("--per-gpu", type=int, metavar="N", help="local: cells that share a GPU (default: 1)")
        group.add_argument("--partition", help="slurm, as all below")
        group.add_argument("--account")
        group.add_argument("--minutes", type=int, metavar="N", help="time limit of a job (default: 240)")
        group.add_argument("--memory-gib", type=float, metavar="N", help="memory of a process (default: the cluster's)")

    verb("plan", "Tell what a grid consists of, what is done, and what the rest will cost", grid, plugins, cluster)
    run = verb("run", "Train what is missing of a grid, measure costs, write the report", grid, plugins, cluster, jobs)
    run.add_argument("--wait", action="store_true", help="on a cluster: stay until all is done")
    run.add_argument(
        "--together", action="store_true", help="train methods of one seed in lock-step: one teacher forward for all"
    )
    run.add_argument("--retry", action="store_true", help="train failed cells again")
    run.add_argument("--force", action="store_true", help="train finished cells again; their old records are set aside")
    run.add_argument("--no-cost", action="store_true", help="leave out the probe of costs and the report")
    run.add_argument("--checkpoint-s", type=float, default=30.0, metavar="S", help="seconds between checkpoints (default: 30)")
    run.add_argument(
        "--visualise",
        action="append",
        default=[],
        metavar="BACKEND",
        help="an mmengine backend, such as tensorboard",
    )
    cost = verb("cost", "Measure what a step of each method costs; leave the machine alone meanwhile", grid, plugins)
    cost.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    cost.add_argument("--force", action="store_true", help="measure again what was measured on this hardware")
    speed = verb(
        "speed", "Measure this engine against the field's usual training loop, and what each of its pieces gains", grid
    )
    speed.set_defaults(grid="speed", imports=[], results="results")
    speed.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    speed.add_argument("--ablate", action="store_true", help="also switch off each piece in turn")
    speed.add_argument("--json", action="store_true", help="for programs")

    status = verb("status", "Tell how far a run is", finished)
    status.add_argument("--json", action="store_true", help="for programs")
    verb("cancel", "End a grid's jobs on the cluster, and no others; what is done is kept", finished)
    verb("logs", "Print a cell's log and, where it failed, why", cell)
    report = verb("report", "Write a grid's tables, figures and page", finished)
    report.add_argument("--compare", metavar="DIR", help="another folder of results, to set beside it")
    maps = verb("maps", "Draw where trained students look (Grad-CAM++), side by side, for the report", plugins)
    maps.add_argument("cells", nargs="+", metavar="CELL", help="ids of finished cells, or enough of them")
    maps.add_argument("--images", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N", help="positions in the test set")
    maps.add_argument("--data-root", metavar="DIR", help="where data sets lie or are downloaded to (default: data)")
    export = verb("export", "Write a finished cell's weights as safetensors", cell)
    export.add_argument("--to", metavar="FILE", help="default: <cell>.safetensors in this folder")
    clean = verb("clean", "Remove scratch files of finished cells, and weights with --weights", finished)
    clean.add_argument("--weights", action="store_true", help="also the weights of cells that teach nobody")
    verify = verb("verify", "Check every record, curve, weight file and cost of a grid", finished)
    verify.add_argument("--all", action="store_true", help="every grid of the results folder")
    merge = verb("merge", "Take over the results of another folder; name what contradicts ours")
    merge.add_argument("source", help="a results folder, as of another machine")
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    from bench.errors import UserError

    try:
        return VERBS[options.verb](options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:  # a place that was given
        print(f"error: {error.filename2 or error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


# Verbs that plan and train


def _plan(options: argparse.Namespace, cluster: Any = None) -> Any:
    """(grid, store) of the options; imports torch."""
    from bench.engine.device import GPU_ELSEWHERE
    from bench.plan import grid_file
    from bench.plan.expand import expand
    from bench.plugins import import_plugin
    from bench.records.store import Store

    for plugin in options.imports:
        import_plugin(plugin)
    name, raw = grid_file.read(options.grid, options.overrides)
    device = GPU_ELSEWHERE if cluster and cluster.kind == "slurm" and cluster.gpus else options.device
    return expand(name, raw, options.data_root, device), Store(options.results)


def _cluster(options: argparse.Namespace) -> Any:
    from bench.jobs import cluster

    keys = ("jobs", "threads", "per_gpu", "partition", "account", "minutes", "gpus", "memory_gib")
    return cluster.read(options.cluster, {key: getattr(options, key, None) for key in keys})


def plan(options: argparse.Namespace) -> int:
    from bench.plan import estimate as planning

    grid, store = _plan(options, _cluster(options))
    planning.show(grid, store, _console())
    return 0


def run(options: argparse.Namespace) -> int:
    from bench.jobs.worker import stop_on_sigterm

    stop_on_sigterm()
    cluster = _cluster(options)
    if cluster.kind == "debug" and "WORLD_SIZE" in os.environ:  # torchrun's; this process is one of several
        from bench.engine.distributed import join

        with join(int(os.environ["WORLD_SIZE"]), options.device) as team:
            return _run(options, cluster) if team.leads else _assist(options, team)
    return _run(options, cluster)


def _assist(options: argparse.Namespace, team: Any) -> int:
    from bench.jobs.worker import assist
    from bench.plan import grid_file
    from bench.plugins import import_plugin
    from bench.records.options import Options
    from bench.records.store import Store

    for plugin in options.imports:
        import_plugin(plugin)
    name, _ = grid_file.read(options.grid, options.overrides)
    settings = Options(**_worker_options(options) | {"device": team.device(options.device), "threads": options.threads or 0})
    assist(Store(options.results), name, settings, team)
    return 0


def _run(options: argparse.Namespace, cluster: Any) -> int:
    import time

    from bench.errors import UserError
    from bench.jobs import local as dispatch
    from bench.jobs import slurm
    from bench.records import upkeep
    from bench.records.progress import Progress, state_of

    started = time.monotonic()
    console = _console()
    grid, store = _plan(options, cluster)
    store.check_writable(grid.name)
    store.write_manifest(grid.name, grid.manifest())
    for skip in grid.skipped:
        console.print(f"skipped {skip.what}: {skip.reason}", highlight=False, markup=False)
    for line in upkeep.prepare(grid.cells, store.results.grid(grid.name), options.retry, options.force):
        console.print(line, highlight=False, markup=False)
    todo = [cell for cell in grid.cells if not store.settled(grid.name, cell.id)]
    if todo:
        from bench.data import load

        try:
            load(todo[0].data, options.data_root)  # fails, or downloads, before any worker starts
        except (OSError, ValueError, KeyError) as error:
            raise UserError(str(error)) from None
        if options.together and cluster.kind == "slurm" and cluster.cells_per_job == 1:
            raise UserError("--together: a job of one cell has no company; set cells_per_job in the cluster file")
        if options.together:
            _tell_who_trains_alone(todo, console)
        parts = todo, store, grid.name, _worker_options(options), cluster
        if cluster.kind == "slurm":
            count = slurm.submit(*parts)
            console.print(f"{count} cells handed to Slurm, {len(todo) - count} in its hands already", highlight=False)
            if not options.wait:
                console.print("`status` tells how far they are; `run` again hands over what was lost, then reports")
                return 0
        with Progress(store, grid.name, {cell.id: cell.label for cell in grid.cells}, console) as progress:
            (slurm.follow if cluster.kind == "slurm" else dispatch.launch)(*parts, progress.update)
    ends = [state_of(store, grid.name, cell.id) for cell in grid.cells]
    done, spent = ends.count("done"), time.monotonic() - started
    console.print(
        f"{len(todo)} were left; {done} of {len(ends)} done, {ends.count('failed')} failed, {spent:.0f} s",
        highlight=False,
    )
    if not options.no_cost and done:
        finished = [cell for cell in grid.cells if store.done(grid.name, cell.id)]
        if cluster.kind == "slurm":  # this machine only submits jobs: its steps are nobody's cost
            console.print("costs are not measured here: run `cost` on an idle machine of the cluster")
        else:
            _measure(finished, grid.name, store, options, console, force=False)
        _report(store, grid.name, console)
    return 0 if done == len(ends) else 1


def _tell_who_trains_alone(cells: list[Any], console: Any) -> None:
    from bench.engine.lockstep import alone_because

    reasons = {cell.label: reason for cell in cells if (reason := alone_because(cell))}
    for label, reason in reasons.items():
        console.print(f"alone: {label}: {reason}", highlight=False, markup=False)


def _worker_options(options: argparse.Namespace) -> dict[str, Any]:
    """Plain values for `bench.records.options.Options`."""
    from bench.engine.visualizers import backend

    return {
        "device": options.device,
        "data_root": str(Path(options.data_root).resolve()) if options.data_root else None,
        "checkpoint_s": options.checkpoint_s,
        "together": options.together,
        "visualise": tuple(backend(name) for name in options.visualise),
        "imports": tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in options.imports),
    }


def cost(options: argparse.Namespace) -> int:
    grid, store = _plan(options)
    store.check_writable(grid.name)
    store.write_manifest(grid.name, grid.manifest())
    _measure(grid.cells, grid.name, store, options, _console(), options.force)  # untrained networks take as long
    return 0


def _measure(cells: list[Any], grid: str, store: Any, options: argparse.Namespace, console: Any, force: bool) -> None:
    from bench.engine.device import machine, resolve_device
    from bench.measure import meters
    from bench.measure import probe as cost
    from bench.records.options import Options
    from bench.records.record import BUSY_PERCENT

    threads = options.threads if options.verb == "cost" else 0
    known, _ = store.costs(grid)
    wanted = cells if force else cost.missing(cells, known, machine(resolve_device(options.device)), threads)
    if not wanted:
        if options.verb == "cost":
            console.print("measured before, on this hardware; --force measures again")
        return
    busy = meters.neighbours_percent()
    console.print("measuring costs; leave the machine alone meanwhile", highlight=False)
    if busy > BUSY_PERCENT:
        console.print(f"[yellow]this machine is {busy:.0f} % busy with other work[/]: the spread will show it")
    settings = Options(device=options.device, threads=threads, data_root=options.data_root)
    for measured in cost.measure(wanted, store, grid, settings):
        step = measured.step
        console.print(
            f"  {measured.label:<24} {step.median_ms:8.2f} ms a step ({step.low_ms:.2f} to {step.high_ms:.2f})", highlight=False
        )


def speed(options: argparse.Namespace) -> int:
    import json

    from bench.measure import speed as bench_speed
    from bench.records.options import Options
    from reports import speed as reports_speed

    grid, store = _plan(options)
    settings = Options(device=options.device, threads=options.threads, data_root=options.data_root)
    measured = bench_speed.measure(grid, store, settings, options.ablate, tell=lambda line: print(line, file=sys.stderr))
    found = bench_speed.as_json(measured)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    console = _console()
    for part in reports_speed.tables(found):
        console.print(part, highlight=False)
    return 0


# Verbs that read results; none of them imports torch


def _place(options: argparse.Namespace) -> tuple[Any, str]:
    """(store, grid) that `grid` names: a name in --results, or a folder."""
    from bench.records.store import Store

    path = Path(options.grid)
    if path.is_dir() and (path / "manifest.json").exists():
        return Store(path.resolve().parent), path.resolve().name
    return Store(options.results), path.stem if path.suffix in (".yaml", ".yml") else options.grid


def status(options: argparse.Namespace) -> int:
    import json

    from bench.errors import UserError
    from bench.jobs import slurm
    from bench.records.progress import STATES, state_of

    store, grid = _place(options)
    manifest = store.manifest(grid)
    states = {cell["id"]: state_of(store, grid, cell["id"]) for cell in manifest["cells"]}
    queue, silent = {}, ""
    try:
        queue = slurm.queue(store, grid) if "missing" in states.values() else {}
    except UserError as error:
        silent = str(error)
    states |= {cell_id: "queued" for cell_id in queue if states.get(cell_id) == "missing"}
    names = [*STATES, "queued"] if queue else STATES
    counts = {state: list(states.values()).count(state) for state in names}
    if options.json:
        print(json.dumps({"grid": grid, "counts": counts, "cells": states, "skipped": manifest["skipped"]}, indent=1))
        return 0
    console = _console()
    console.print(f"{grid}: " + ", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False)
    for cell_id, state in states.items():
        if state == "failed":
            failure = store.scratch(grid, cell_id, "failure.json") or {}
            console.print(f"failed  {cell_id}: {failure.get('error', '')}", highlight=False, markup=False)
        elif state == "running":
            told = store.scratch(grid, cell_id, "progress.json") or {}
            console.print(f"running {cell_id}: epoch {told.get('epoch', 0)} of {told.get('epochs', '?')}", highlight=False)
        elif state == "queued":
            job = queue[cell_id]
            console.print(
                f"queued  {cell_id}: job {job.job_id}, {job.state.lower()}, {job.reason}", highlight=False, markup=False
            )
    for skip in manifest["skipped"]:
        console.print(f"skipped {skip['what']}: {skip['reason']}", highlight=False, markup=False)
    if silent:
        console.print(f"the queue is not known: {silent}", highlight=False, markup=False)
    return 0


def cancel(options: argparse.Namespace) -> int:
    from bench.jobs import slurm

    store, grid = _place(options)
    store.manifest(grid)
    print(f"{slurm.cancel(store, grid)} cells taken out of the queue; what is done is kept")
    return 0


def logs(options: argparse.Namespace) -> int:
    from bench.records.store import Store

    store = Store(options.results)
    grid, cell_id = store.find(options.cell)
    log = store.cell(grid, cell_id) / "log.txt"
    print(log.read_text() if log.exists() else "no log: the cell was taken over, or has not started")
    failure = store.scratch(grid, cell_id, "failure.json")
    if failure:
        print(f"failed at {failure.get('when')}: {failure.get('error')}")
    return 0


def report(options: argparse.Namespace) -> int:
    store, grid = _place(options)
    _report(store, grid, _console(), options.compare)
    return 0


def _report(store: Any, grid: str, console: Any, compare: str | None = None) -> None:
    from reports import page, tables

    written = page.write(store, grid, store.report_folder(grid), compare=compare)
    tables.print_summary(store, grid, console)
    console.print(f"report: {written}", highlight=False, soft_wrap=True)


def maps(options: argparse.Namespace) -> int:
    from bench.measure.gradcam import look
    from bench.plugins import import_plugin
    from bench.records.store import Store
    from reports.maps import draw

    for plugin in options.imports:
        import_plugin(plugin)
    store = Store(options.results)
    cells = [store.find(name) for name in options.cells]
    looks = look(cells, options.images, store, options.data_root)
    name = "-".join([*(cell_id.rpartition("-")[2] for _, cell_id in cells), *map(str, options.images)])
    path = store.report_folder(cells[0][0]) / "maps" / f"{name[:120]}.png"
    draw(path, looks.images, looks.classes, looks.networks)
    print(path)
    return 0


def export(options: argparse.Namespace) -> int:
    from bench.errors import UserError
    from bench.records.store import Store

    store = Store(options.results)
    grid, cell_id = store.find(options.cell)
    try:
        record = store.record(grid, cell_id)
        if record is None:
            raise UserError(f"{cell_id} is not finished")
        raw = store.weights(grid, record)
    except ValueError as error:
        raise UserError(f"{cell_id}: {error}") from None
    target = Path(options.to or f"{cell_id}.safetensors")
    store.write(target, raw)
    print(target)
    return 0


def clean(options: argparse.Namespace) -> int:
    store, grid = _place(options)
    freed = store.clean(grid, options.weights)
    print(f"{freed / 2**20:.1f} MiB freed")
    return 0


def verify(options: argparse.Namespace) -> int:
    from bench.records import upkeep
    from bench.records.store import Store

    if options.all:
        store, grids = Store(options.results), Store(options.results).grids()
    else:
        store, grid = _place(options)
        grids = [grid]
    problems = [problem for grid in grids for problem in upkeep.verify(store.results.grid(grid))]
    for problem in problems:
        print(f"{problem.path}: {problem.reason}")
    print(f"{len(grids)} grids, {len(problems)} problems" if options.all else f"{len(problems)} problems")
    return 1 if problems else 0


def merge(options: argparse.Namespace) -> int:
    from bench.records import upkeep
    from bench.records.folders import ResultsFolder

    taken, conflicts = upkeep.merge(ResultsFolder(options.results), ResultsFolder(options.source))
    for conflict in conflicts:
        print(f"{conflict.path}: {conflict.reason}")
    print(f"{taken} copied, {len(conflicts)} conflicts")
    return 1 if conflicts else 0


# Verbs that tell what there is


def list_(options: argparse.Namespace) -> int:
    from bench.plan import catalogue

    for plugin in options.imports:
        from bench.plugins import import_plugin

        import_plugin(plugin)
    for what in [options.what] if options.what else LISTS:
        _console().print(catalogue.table(what))
    return 0


def show(options: argparse.Namespace) -> int:
    from bench.plan import catalogue
    from bench.plugins import import_plugin
    from bench.records.store import Store

    for plugin in options.imports:
        import_plugin(plugin)
    _console().print(catalogue.card(options.name, Store(options.results)))
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console()


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_,
    "show": show,
    "plan": plan,
    "run": run,
    "cost": cost,
    "speed": speed,
    "status": status,
    "cancel": cancel,
    "logs": logs,
    "report": report,
    "maps": maps,
    "export": export,
    "clean": clean,
    "verify": verify,
    "merge": merge,
}

if __name__ == "__main__":
    sys.exit(main())
