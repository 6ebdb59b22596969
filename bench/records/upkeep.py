"""Checking and joining folders of results. No torch here."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from functools import partial

from bench.errors import UserError
from bench.records import source
from bench.records.cell import Cell, digest, is_id, is_safe
from bench.records.cell_folder import CORRECT, CURVES, KEPT, RECORD, CellFolder
from bench.records.files import Folder
from bench.records.folders import MANIFEST, OTHER_FOLDERS, GridFolder, ResultsFolder
from bench.records.handles import LINKS
from bench.records.problems import Problem, reason
from bench.records.record import Record
from bench.records.source import Code, own_part, own_source, stale


def prepare(
    cells: Sequence[Cell], folder: GridFolder, retry: bool, force: bool, code: Code | None = None, keep: bool = False
) -> list[str]:
    """Before a run: set aside what is damaged or to be redone, forget failures that may be tried again, and copy what other
    grids have.

    Args:
        cells: teachers first.
        code: the user's own, as it is now; results of other code are replaced, unless `keep`.

    Returns:
        What was set aside and why, what other code made, and what this version cannot read.
    """
    lines = []
    code = code or {}
    if other := stale(cells, folder, code):
        made = f"{len(other)} result was" if len(other) == 1 else f"{len(other)} results were"
        if keep:
            lines.append(f"{made} made by other code: kept, and marked in the report")
        else:
            lines.append(
                f"{made} made by other code: trained again; the old records go to {folder.name}/superseded (--keep keeps them)"
            )
            for cell_id in other:
                try:
                    folder.cell(cell_id).supersede()
                except (OSError, ValueError) as error:  # its own fault, as below
                    lines.append(f"{folder.name}/{cell_id}: {reason(error)}")
    needed = {name for cell in cells if force or not folder.cell(cell.id).done() for name in cell.waits_for}
    for cell in cells:
        place = folder.cell(cell.id)
        try:
            lines += _prepare_cell(cell, place, cell.id in needed, retry, force, code)
        except (OSError, ValueError) as error:  # its own fault: the others are prepared all the same
            lines.append(f"{place.place()}: {reason(error)}")
    return lines


def _prepare_cell(cell: Cell, place: CellFolder, with_weights: bool, retry: bool, force: bool, code: Code) -> list[str]:
    why, damaged = place.unusable(with_weights) or ("", [])
    if force:
        why, damaged = "to be trained again", [RECORD]
        place.drop_checkpoint()
    results = place.grid.results
    lines = [f"set aside {results.root / name}: {why}" for name in place.set_aside(*damaged)]
    if unreadable := place.unreadable():
        lines.append(f"{place.place(RECORD)}: {unreadable}")
    elif not force and not place.done():
        results.adopt(place, with_weights, partial(_made_by, own_source(cell, code)))
    failure = place.failure()
    if failure and (retry or force or failure.get("again")):
        place.clear_failure()
    return lines


def _made_by(own: str, record: Record) -> bool:
    return not own or own_part(record.source) == own


def hidden(results: ResultsFolder) -> list[Problem]:
    """What looks like a grid and is not among `results.grids()`: a link, a name that no grid has, or a lost manifest; and what
    cannot be looked into."""
    found = results.looked_into()[1]
    for entry in results.place.entries():
        with contextlib.suppress(OSError, ValueError):  # it cannot be looked into, or is a link that leads nowhere
            inner = Folder(results.root / entry.name)
            if entry.kind == "link" and inner.has(MANIFEST):
                found.append(Problem(entry.name, f"it is a link: {LINKS}"))
            elif entry.kind == "folder" and not is_safe(entry.name) and inner.has(MANIFEST):
                found.append(Problem(entry.name, "no grid has such a name: use at most 120 of a-z 0-9 _ + . -"))
            elif entry.kind == "folder" and not inner.has(MANIFEST) and any(is_id(each.name) for each in inner.entries()):
                found.append(Problem(f"{entry.name}/{MANIFEST}", "it is missing, and there are cells; `run` writes it anew"))
    return found


def every(results: ResultsFolder) -> list[GridFolder]:
    """All grids of a folder.

    Raises:
        UserError: it holds none, and nothing that looks like one.
    """
    names = results.grids()
    if not names and not hidden(results):
        raise UserError(f"{results.root}: there are no results in this folder (no <grid>/manifest.json)")
    return [results.grid(name) for name in names]


def verify(folder: GridFolder) -> list[Problem]:
    """All that is wrong with a grid's results; empty where all is well.

    Checked: the manifest's digest; of every record the digest, schema version, types and ranges, and that its id is the one
    that its contents give; that the curves are the ones it names and have a row an epoch; that the file by test image is the
    one it names and adds up to its accuracy; that the weights, where kept, are the ones it names; that its teacher's record is
    there; of every cost the digest, schema version, types and ranges; files that were set aside as damaged; folders without a
    record that the manifest does not know.

    Raises:
        UserError: there is no folder of that name.
    """
    problems = []
    known = None
    try:
        known = {cell["id"] for cell in folder.manifest()["cells"]}
    except UserError as error:
        if folder.name not in {entry.name for entry in folder.results.place.entries()}:
            raise
        problems.append(Problem(f"{folder.name}/manifest.json", str(error)))
    records, unusable = folder.records()
    problems += unusable
    if any(problem.path == folder.name for problem in unusable):
        return unusable  # it cannot be listed
    ids = {record.id for record in records}
    broken = {problem.path.split("/")[1] for problem in unusable}
    for record in records:
        cell = folder.cell(record.id)
        problems += _verify_kept(cell, record)
        missing = [name for name in record.cell.waits_for if name not in ids]
        problems += [Problem(cell.place(RECORD), f"its teacher {name} has no record here") for name in missing]
    problems += folder.costs()[1]
    problems += [Problem(name, "was set aside; look at it, then remove it") for name in folder.set_aside_files()]
    if known is not None:
        strangers = set(folder.folders()) - known - ids - broken - set(OTHER_FOLDERS)
        problems += [
            Problem(f"{folder.name}/{name}", "is no cell of the manifest, and has no record") for name in sorted(strangers)
        ]
    return problems


def _verify_kept(cell: CellFolder, record: Record) -> list[Problem]:
    problems = []
    for kept in KEPT:
        if not cell.must_have(kept, record) and not cell.has(kept):
            continue
        try:
            cell.check_kept(kept, record)
            if kept is CORRECT:
                cell.correct(record)
            rows = len(cell.curves(record).splitlines()) - 1 if kept is CURVES else record.epochs
            if rows != record.epochs:
                problems.append(Problem(cell.place(kept.name), f"it has {rows} rows for {record.epochs} epochs"))
        except (ValueError, OSError) as error:
            problems.append(Problem(cell.place(kept.name), reason(error)))
    return problems


def notes(folder: GridFolder) -> list[str]:
    """What is no problem and worth knowing: whose code made the results."""
    try:
        code = source.code_of(folder.manifest())
    except UserError:
        return []
    return source.notes(folder.records()[0], code)


def merge(ours: ResultsFolder, theirs: ResultsFolder) -> tuple[int, list[Problem]]:
    """Copy cells and costs that we lack; ours stay where both have one.

    What is copied is checked: records by digest, schema and id, the files beside them by the digests that records name.

    Returns:
        How many cells were copied, and what was not: cells that both trained with different results, what is damaged or
        missing there, and what another process trains here now.

    Raises:
        UserError: there are no results in their folder, or ours lies in it.
    """
    if ours.place.way_from(theirs.place):
        raise UserError(f"{theirs.root}: the folder of --results lies in it; name another one")
    if not theirs.grids():
        looks = "".join(f"; {problem.path}: {problem.reason}" for problem in hidden(theirs))
        looks += "; it is one grid's own folder: name the folder that holds it" if theirs.place.has(MANIFEST) else ""
        raise UserError(f"{theirs.root}: there are no results in this folder (no <grid>/manifest.json){looks}")
    copied, problems = 0, [Problem(f"{theirs.root}/{problem.path}", problem.reason) for problem in hidden(theirs)]
    for name in theirs.grids():
        try:
            more, found = _merge_grid(ours.grid(name), theirs.grid(name))
        except UserError as error:  # the other grids are copied all the same
            if _lasts(error.__context__):
                raise
            more, found = 0, [Problem(f"{theirs.root}/{name}", str(error))]
        except OSError as error:
            more, found = 0, [_lasting(error, f"{theirs.root}/{name}")]
        copied, problems = copied + more, problems + found
    return copied, problems


def _merge_grid(here: GridFolder, there: GridFolder) -> tuple[int, list[Problem]]:
    """See `merge`."""
    manifest = there.manifest()
    here.check_writable()
    here.add_to_manifest(manifest)
    records, unusable = there.records()
    copied, problems = 0, [Problem(f"{there.results.root}/{problem.path}", problem.reason) for problem in unusable]
    for record in records:
        more, found = _merge_cell(here.cell(record.id), there.cell(record.id), record)
        copied, problems = copied + more, problems + found
    return copied, problems + _merge_costs(here, there)


def _merge_cell(here: CellFolder, there: CellFolder, record: Record) -> tuple[int, list[Problem]]:
    """Copy a cell that we lack; returns how many were copied, and the problem."""
    try:
        mine = here.record()
    except ValueError as error:
        return 0, [Problem(here.place(), f"ours cannot be used ({reason(error)}); theirs was not copied")]
    if mine is not None:
        return 0, [] if results(mine) == results(record) else [Problem(here.place(), _contradiction(mine, record))]
    try:
        here.copy_from(there)
    except TimeoutError:
        return 0, [Problem(here.place(), f"it is trained here now, by {here.holder()}; theirs was not copied")]
    except ValueError as error:
        return 0, [Problem(f"{there.grid.results.root}/{there.place()}", f"{reason(error)}; it was not copied")]
    except OSError as error:
        return 0, [_lasting(error, f"{there.grid.results.root}/{there.place()}")]
    return 1, []


def _lasting(error: OSError, place: str) -> Problem:
    """What the system refuses of one file.

    Raises:
        OSError: it will refuse all others as well.
    """
    if _lasts(error):
        raise error
    return Problem(str(error.filename or place), f"{reason(error)}; it was not copied")


def _lasts(error: BaseException | None) -> bool:
    """Whether the system will refuse all that is written after it as well."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _merge_costs(here: GridFolder, there: GridFolder) -> list[Problem]:
    """Copy the costs that we lack; returns theirs that cannot be used."""
    measured = {(cost.key, cost.machine.hardware, cost.path) for cost in here.costs()[0]}
    costs, problems = there.costs()
    for cost in costs:
        if (cost.key, cost.machine.hardware, cost.path) not in measured:
            here.write_cost(cost)
    return [Problem(f"{there.results.root}/{problem.path}", problem.reason) for problem in problems]


def _contradiction(ours: Record, theirs: Record) -> str:
    here, there = ours.accuracies.last.top1, theirs.accuracies.last.top1
    return f"trained twice: {here:.2f} % here ({ours.machine.host}), {there:.2f} % there ({theirs.machine.host}); ours stays"


def results(record: Record) -> str:
    """Digest of what two trainings of one cell must agree in."""
    return digest(record.model_dump(mode="json", include={"accuracies", "weights_sha256", "steps"}))
