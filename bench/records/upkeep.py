"""Checking and joining folders of results. No torch here."""

from __future__ import annotations

from bench.errors import UserError
from bench.records.cell import Cell, digest
from bench.records.record import Record
from bench.records.store import OTHER_FOLDERS, Problem, Store


def prepare(cells: list[Cell], store: Store, grid: str, retry: bool, force: bool) -> list[str]:
    """Before a run: set aside what is damaged or to be redone, forget failures that may be tried again, and take over what
    other grids have. Returns what was set aside and why.
    """
    said = []
    needed = {cell.teacher.cell for cell in cells if cell.teacher and (force or not store.done(grid, cell.id))}
    for cell in cells:
        folder = store.cell(grid, cell.id)
        reason, damaged = store.unusable(grid, cell.id, with_weights=cell.id in needed)
        if force:
            reason, damaged = "to be trained again", ["record.json"]
            (folder / "checkpoint").unlink(missing_ok=True)
        for path in (folder / name for name in damaged):
            if path.exists():
                store.set_aside(path)
                said.append(f"set aside {path}: {reason}")
        if not force and not store.done(grid, cell.id):
            store.adopt(grid, cell.id, with_weights=cell.id in needed)
        failure = store.scratch(grid, cell.id, "failure.json")
        if failure and (retry or force or failure.get("again")):
            (folder / "failure.json").unlink()
    return said


def verify(store: Store, grid: str) -> list[Problem]:
    """All that is wrong with a grid's results; empty where all is well.

    Checked: the manifest's digest; of every record the digest, schema version, types and ranges, and that its id is the one
    that its contents give; that the curves are the ones it names and have a row an epoch; that the weights, where kept, are
    the ones it names; that its teacher's record is there; of every cost the digest, schema version, types and ranges; files
    that were set aside as damaged; folders without a record that the manifest does not know.
    """
    problems = []
    known = None
    try:
        known = {cell["id"] for cell in store.manifest(grid)["cells"]}
    except UserError as error:
        problems.append(Problem(f"{grid}/manifest.json", str(error)))
    records, unusable = store.records(grid)
    problems += unusable
    ids = {record.id for record in records}
    broken = {problem.path.split("/")[1] for problem in unusable}
    for record in records:
        problems += _verify_files(store, grid, record)
        teacher = record.cell.teacher.cell if record.cell.teacher else None
        if teacher and teacher not in ids:
            problems.append(Problem(f"{grid}/{record.id}/record.json", f"its teacher {teacher} has no record here"))
    _, unusable = store.costs(grid)
    problems += unusable
    folder = store.folder(grid)
    problems += [
        Problem(f"{grid}/{path.relative_to(folder)}", "was set aside; look at it, then remove it")
        for path in sorted(folder.glob("*/*.damaged-*"))
    ]
    if known is not None:
        strangers = {path.name for path in folder.iterdir() if path.is_dir()} - known - ids - broken - set(OTHER_FOLDERS)
        problems += [Problem(f"{grid}/{name}", "is no cell of the manifest, and has no record") for name in sorted(strangers)]
    return problems


def _verify_files(store: Store, grid: str, record: Record) -> list[Problem]:
    problems = []
    path = f"{grid}/{record.id}"
    try:
        rows = len(store.curves(grid, record).splitlines()) - 1
        if rows != record.epochs:
            problems.append(Problem(f"{path}/curves.csv", f"it has {rows} rows for {record.epochs} epochs"))
    except ValueError as error:
        problems.append(Problem(f"{path}/curves.csv", str(error)))
    if (store.cell(grid, record.id) / "weights.safetensors").exists():
        try:
            store.weights(grid, record)
        except ValueError as error:
            problems.append(Problem(f"{path}/weights.safetensors", str(error)))
    return problems


def merge(ours: Store, theirs: Store) -> tuple[int, list[Problem]]:
    """Take over cells and costs that we lack; ours stay where both have one.

    Returns:
        How many cells were taken over, and the conflicts: cells that both trained, with different results.

    Raises:
        UserError: there are no results in their folder.
    """
    if not theirs.grids():
        raise UserError(f"{theirs.root}: there are no results in this folder (no <grid>/manifest.json)")
    taken, problems = 0, []
    for grid in theirs.grids():
        ours.check_writable(grid)
        _merge_manifests(ours, theirs, grid)
        records, unusable = theirs.records(grid)
        problems += [Problem(f"{theirs.root}/{problem.path}", problem.reason) for problem in unusable]
        for record in records:
            try:
                mine = ours.record(grid, record.id)
            except ValueError as error:
                problems.append(Problem(f"{grid}/{record.id}", f"ours cannot be used ({error}); theirs was not taken over"))
                continue
            if mine is None:
                ours.take_over(theirs, grid, grid, record.id)
                taken += 1
            elif results(mine) != results(record):
                here, there = mine.accuracies.last.top1, record.accuracies.last.top1
                hosts = mine.machine.host, record.machine.host
                reason = f"trained twice: {here:.2f} % here ({hosts[0]}), {there:.2f} % there ({hosts[1]}); ours stays"
                problems.append(Problem(f"{grid}/{record.id}", reason))
        measured = {(cost.key, cost.machine.hardware) for cost in ours.costs(grid)[0]}
        for cost in theirs.costs(grid)[0]:
            if (cost.key, cost.machine.hardware) not in measured:
                ours.write_cost(grid, cost)
    return taken, problems


def results(record: Record) -> str:
    """Digest of what two trainings of one cell must agree in."""
    return digest(record.model_dump(mode="json", include={"accuracies", "weights_sha256", "steps"}))


def _merge_manifests(ours: Store, theirs: Store, grid: str) -> None:
    manifest = theirs.manifest(grid)
    if grid in ours.grids():
        mine = ours.manifest(grid)
        known = {cell["id"] for cell in mine["cells"]}
        manifest = {**mine, "cells": mine["cells"] + [cell for cell in manifest["cells"] if cell["id"] not in known]}
    ours.write_manifest(grid, manifest)
