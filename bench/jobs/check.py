"""Tries out each method on each pair before anything is trained: once for cells that differ in seed, epochs or learning rate.

The first worker of a run does it while the others wait, so that a run pays for the trials alone. What was found stands in the
grid's folder: nothing is tried twice, whoever asks. No torch here: `bench.engine` is imported by the worker.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.errors import OtherCodeError, no_exit
from bench.records.cell import Cell, digest
from bench.records.folders import GridFolder
from bench.records.grid_hints import Finding
from bench.records.naming import describe, method_family
from bench.records.options import Options
from bench.records.problems import DamagedError
from bench.records.source import Code, own_source

# Not the cell's own fault: `run` tries again without being asked
EXTERNAL_CAUSES = (OSError, MemoryError, DamagedError, OtherCodeError)
# The same of want of memory where it has no type of its own, or one of torch's, which is not imported here
NO_MEMORY = (
    *("OutOfMemoryError", "out of memory", "ALLOC_FAILED", "can't allocate memory", "Cannot allocate memory", "bad_alloc"),
    *("could not create a primitive", "could not create a memory", "failed to map segment", "can't start new thread"),
    *("unable to mmap", "of shared memory", "allocate shared memory", "is killed by signal", "exited unexpectedly"),  # loaders
)
BUDGET_S = 30.0  # for the trials of a run; what is left then is met when it is trained


def wants_memory(error: BaseException) -> bool:
    return any(word in f"{type(error).__name__}: {error}" for word in NO_MEMORY)


def not_its_fault(error: BaseException) -> bool:
    """Whether a cell failed for a reason outside of it, so that the next run may find otherwise."""
    return isinstance(error, EXTERNAL_CAUSES) or wants_memory(error) or isinstance(error.__cause__, EXTERNAL_CAUSES)


def kind_of(cell: Cell, code: Code, device: str) -> str:
    """Equal for cells of which one trial is enough.

    Args:
        code: the user's own.
        device: "cpu" or "cuda".
    """
    recipe = cell.recipe.model_copy(update={"epochs": 1, "lr": 1.0})
    return digest([cell.model_copy(update={"recipe": recipe}).cost_key, own_source(cell, code), device])[:16]


def what(cell: Cell) -> str:
    """'kd on resnet8 taught by resnet8x4'."""
    taught = f" taught by {_teachers(cell)}" if cell.teachers else ""
    return f"{cell.label or method_family(cell.method)} on {describe(cell.student)}{taught}"


def _teachers(cell: Cell) -> str:
    return " and ".join(describe(teacher.model) for teacher in cell.teachers)


def kinds(cells: Iterable[Cell], options: Options) -> dict[str, list[Cell]]:
    """Cells by kind. Kinds of different methods and pairs come first, then what differs in arguments."""
    from bench.engine.code import own_code
    from bench.engine.device import resolve_device

    cells = list(cells)
    code, device = own_code(cells), resolve_device(options.device).type
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(kind_of(cell, code, device), []).append(cell)
    seen: Counter[tuple[str, ...]] = Counter()
    places = {}
    for kind, (first, *_) in found.items():
        pair = method_family(first.method), describe(first.student), _teachers(first)
        seen[pair] += 1
        places[kind] = seen[pair]
    return {kind: found[kind] for kind in sorted(found, key=places.__getitem__)}


def prepare(cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
    """At the start of a run: forget what failed, so that it is tried again, and count as tried what has records."""
    known = folder.checks()
    passed = {kind: finding for kind, finding in known.items() if finding.error == ""}
    for kind, alike in kinds(cells, options).items():
        if kind not in passed and any(folder.cell(cell.id).done() for cell in alike):
            passed[kind] = Finding("")
    if passed != known:
        folder.write_checks(passed)


def untried(cells: Iterable[Cell], folder: GridFolder, options: Options) -> dict[str, Cell]:
    """One cell of each kind of which nothing is known, by kind."""
    known = folder.checks()
    return {kind: first for kind, (first, *_) in kinds(cells, options).items() if kind not in known}


def check(cells: Sequence[Cell], folder: GridFolder, options: Options, budget_s: float = BUDGET_S) -> dict[str, Finding]:
    """Try out the kinds of these cells that were not tried yet; who comes second waits for the first.

    Returns:
        What is known, by kind. What there was no time for is left out.
    """
    from bench.engine.code import check_same

    try:
        if options.code is not None:
            check_same(dict(options.code), cells)
    except OtherCodeError:  # its training says so
        return {}
    alike = kinds(cells, options)
    with folder.check_lock():
        known = folder.checks()
        new = {kind: first for kind, (first, *_) in alike.items() if kind not in known}
        if new and all(finding.error is not None for finding in known.values()):  # else the trainings show whose fault it is
            _try_out(new, known, folder, options, time.monotonic() + budget_s)
    return known


def name_failed(cells: Sequence[Cell], folder: GridFolder, found: Mapping[str, Finding], options: Options) -> None:
    """Leave the trace of a failure in the place of each cell whose kind failed."""
    for kind, alike in kinds(cells, options).items():
        finding = found.get(kind)
        if finding is None or not finding.error:
            continue
        for place in (folder.cell(cell.id) for cell in alike):
            if not place.locked() and not place.settled():  # in this order: it may end between the two questions
                with contextlib.suppress(OSError):
                    place.write_failure(f"check: {finding.error}", finding.trace, finding.again)


def _try_out(new: dict[str, Cell], known: dict[str, Finding], folder: GridFolder, options: Options, until: float) -> None:
    """Add to `known` and to the folder what is found of one cell of each kind."""
    from bench.engine.trial import Trials

    trials = Trials(folder, options)
    seconds: dict[str, float] = {}
    try:
        for kind, cell in new.items():
            if time.monotonic() > until:
                break
            folder.write_checks(known | {kind: Finding(None)})  # should the process die of it
            known[kind] = _finding(lambda cell=cell, kind=kind: seconds.update({kind: trials.try_out(cell)}))  # type: ignore[misc]
        if seconds:
            kind = max(seconds, key=lambda each: seconds[each] * new[each].recipe.batch_size)
            if not trials.on_cpu or time.monotonic() + seconds[kind] * new[kind].recipe.batch_size < until:
                known[kind] = _finding(lambda: trials.try_full_batch(new[kind]))
    finally:
        folder.write_checks(known)


def _finding(trial: Callable[[], object]) -> Finding:
    try:
        with no_exit():
            trial()
    except Exception as error:
        return Finding(str(error), traceback.format_exc(), not_its_fault(error))
    return Finding("")
