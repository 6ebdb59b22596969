"""Cells in, records out: assembles the parts, has the loop train them, writes what came of it."""

from __future__ import annotations

import csv
import gc
import io
import math
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from bench.engine import checkpoint
from bench.engine.assemble import Assembly, assemble
from bench.engine.capture import runner
from bench.engine.code import check_same, own_code
from bench.engine.device import choose_repeatable_kernels, hand_back_freed_memory, keep_freed_memory, machine, resolve_device
from bench.engine.distributed import ALONE, Team
from bench.engine.flops import count_flops
from bench.engine.hooks import CheckpointHook, EvaluateHook, ProgressHook, VisualizeHook, user_hook
from bench.engine.lockstep import draws
from bench.engine.loop import Loop, Row
from bench.engine.step import DivergedError
from bench.engine.teacher_accuracy import measure_assembled
from bench.errors import SplitError, UserError
from bench.records.cell import Cell
from bench.records.cell_folder import CellFolder
from bench.records.correct import packed
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.records.problems import DamagedError
from bench.records.record import Accuracies, Accuracy, Clocks, Flops, Machine, Parameters, Record
from bench.records.source import own_part, source


def train(cells: list[Cell], folder: GridFolder, options: Options, team: Team = ALONE) -> list[Record]:
    """Train a group of cells to the end, from their checkpoints where there are any, and write their records.

    Args:
        team: the processes that train together; only the leader writes, and only the leader gets records.

    Raises:
        DivergedError, UserError, ValueError, torch.OutOfMemoryError: nothing but a checkpoint is left then.
        SplitError: some of the cells cannot go on with the others.
        OtherCodeError: the user's code is not the one that the run was planned with.
        DamagedError: a checkpoint does not fit; it was set aside, so that the next attempt starts anew.
    """
    started = _now()
    if options.code is not None:
        check_same(dict(options.code), cells)
    code = own_code(cells)
    made_by = {cell.id: source(cell, code) for cell in cells}
    saved = {cell.id: state for cell in cells if (state := _read_checkpoint(folder.cell(cell.id), made_by[cell.id]))}
    here = machine(resolve_device(options.device))
    _set_threads(cells, saved, options.threads, here)
    _free_memory()
    choose_repeatable_kernels()
    assembly = assemble(cells, folder, options)
    _check_memories(assembly, team)
    if team.leads:
        measure_assembled(assembly, folder)  # unless `run` has done so on this machine
    flops = {cell_id: count_flops(assembly, trainee) for cell_id, trainee in assembly.trainees.items()}
    parameters = {cell_id: trainee.parameter_counts() for cell_id, trainee in assembly.trainees.items()}
    loop = _loop(assembly, team, _eager_reason(cells, folder, options))
    loop.sources = made_by
    loop.machines = {cell.id: _machines(saved.get(cell.id), here) for cell in cells}
    for cell_id, state in saved.items():
        _restore(loop, folder.cell(cell_id), state)
    try:
        loop.run(_hooks(assembly, folder, options, team))
    except DivergedError as error:
        if len(cells) == 1:
            raise
        others = [cell.id for cell in cells if cell.id not in error.cells]
        raise SplitError(str(error), [part for part in (others, *([each] for each in error.cells)) if part]) from error
    if not team.leads:
        return []
    records = []
    for cell in cells:
        place = folder.cell(cell.id)
        if place.done() and (first := place.record()):
            records.append(first)  # our lock was lost, and another was faster: one record a cell
            continue
        record = _record(cell, assembly, loop, flops[cell.id], parameters[cell.id], options, started, place)
        place.write_record(record)
        records.append(record)
    return records


def _eager_reason(cells: list[Cell], folder: GridFolder, options: Options) -> str | None:
    """Why steps are not to be recorded on a GPU, where that is known beforehand."""
    if options.eager:
        return "--eager"
    return next((reason for cell in cells if (reason := folder.cell(cell.id).eager_reason())), None)


def _machines(state: dict[str, Any] | None, here: Machine) -> list[Machine]:
    """What trained a cell, in order, and now this one."""
    before = checkpoint.machines(state) if state else []
    return [*(before[:-1] if before and before[-1].computes_like(here) else before), here]


def _set_threads(cells: list[Cell], saved: dict[str, dict[str, Any]], threads: int, here: Machine) -> None:
    """As many as before an interruption: sums in another order would give other weights. On another machine they do anyway."""
    stopped: dict[tuple[int, int], list[str]] = {}
    for cell in cells:
        state = saved.get(cell.id, {"epoch": 0, "threads": threads})
        *_, before = [here, *checkpoint.machines(state)]
        stopped.setdefault((state["epoch"], state["threads"] if before.computes_like(here) else threads), []).append(cell.id)
    if len(stopped) > 1:
        raise SplitError("they stopped at different epochs, or with other numbers of threads", list(stopped.values()))
    if saved:
        ((_, threads),) = stopped
    if threads:
        torch.set_num_threads(threads)


def _free_memory() -> None:
    """Drop what the last training of this process had; keep freed memory from here on."""
    gc.collect()
    torch.cuda.empty_cache()
    hand_back_freed_memory()
    keep_freed_memory()


def _check_memories(assembly: Assembly, team: Team) -> None:
    for cell_id, trainee in assembly.trainees.items():
        if team.size > 1 and trainee.method.memory_by_sample:
            raise UserError(f"{cell_id}: its method keeps a memory by sample, which several processes would each see a part of")


def _loop(assembly: Assembly, team: Team, eager: str | None) -> Loop:
    cell = next((cell for cell in assembly.cells if draws(cell)), assembly.first)
    method = assembly.trainees[cell.id].method
    prepare_lr = method.prepare_lr or cell.recipe.lr
    taker = runner(assembly.step(team), assembly.dataset, team, eager)
    return Loop(taker, assembly.all_streams(), cell.recipe, method.prepare_epochs, prepare_lr, cell.seed)


def _hooks(assembly: Assembly, folder: GridFolder, options: Options, team: Team) -> list[Hook]:
    """In the order in which they are called."""
    hooks: list[Hook] = [EvaluateHook(assembly), *(user_hook(name) for name in options.hooks)]
    if team.leads and options.visualize:
        hooks.append(VisualizeHook(options.visualize, folder.cell(assembly.first.id)))
    if team.leads:
        hooks += [ProgressHook(folder), CheckpointHook(folder, options.checkpoint_s)]
    return hooks


def _restore(loop: Loop, place: CellFolder, state: dict[str, Any]) -> None:
    try:
        checkpoint.restore(loop, place.id, state)
    except torch.OutOfMemoryError:  # not the checkpoint's fault
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        place.set_aside_checkpoint()
        raise DamagedError(f"its checkpoint cannot be used and was set aside ({error})") from error
    progress = place.progress()
    if progress:  # what was done after the checkpoint is done again
        lost = sum(progress["clocks"].values()) - sum(state["clocks"].values())
        loop.seconds["redone_s"] += max(0.0, lost)


def _record(
    cell: Cell,
    assembly: Assembly,
    loop: Loop,
    flops: Flops,
    parameters: tuple[int, int],
    options: Options,
    started: str,
    place: CellFolder,
) -> Record:
    """Write weights, curves and which test images are classified correctly; the record that goes with them."""
    trainee, rows, end = assembly.trainees[cell.id], loop.history[cell.id], loop.ends[cell.id]
    return Record(
        id=cell.id,
        cell=cell,
        accuracies=accuracies(rows),
        epochs=cell.recipe.epochs,
        steps=cell.recipe.epochs * loop.steps,
        prepare_steps=loop.prepare_epochs * loop.steps,
        train_samples=len(assembly.train.targets),
        clocks=Clocks(**loop.seconds),
        neighbours=options.neighbours + len(assembly.cells) - 1,
        parameters=Parameters(deployed=parameters[0], train_only=parameters[1]),
        flops=flops,
        threads=torch.get_num_threads(),
        machine=loop.machines[cell.id][-1],
        commit=commit(),
        started=started,
        finished=_now(),
        weights_sha256=place.write_weights(checkpoint.pack_weights(trainee.predictor())),
        curves_sha256=place.write_curves(as_csv(rows)),
        correct_sha256=place.write_correct(packed(end.correct.numpy())),
        test_samples=len(end.correct),
        train_top1=end.train_top1,
        test_nll=end.nll if math.isfinite(end.nll) else None,
        test_calibration_error=end.calibration_error if math.isfinite(end.calibration_error) else None,
        source=loop.sources[cell.id],
        path=loop.runner.path,
        path_reason=loop.runner.path_reason,
        earlier_machines=tuple(loop.machines[cell.id][:-1]) or None,
    )


def accuracies(history: list[Row]) -> Accuracies:
    """The three ways to choose an epoch. Of equal accuracies the earliest wins."""

    def at(row: Row) -> Accuracy:
        return Accuracy(epoch=int(row["epoch"]), top1=row["test_top1"], top5=row["test_top5"])

    best = max(history, key=lambda row: row["test_top1"])
    chosen = max(history, key=lambda row: row["val_top1"]) if "val_top1" in history[0] else None
    return Accuracies(last=at(history[-1]), best_test=at(best), chosen=at(chosen) if chosen else None)


def as_csv(history: list[Row]) -> str:
    """Rows as a table, a column for each name that any row has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in history for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def commit() -> str | None:
    """This project's commit, with '+' behind it where the checkout differs from it. Of a copy without git's files: what the
    variable BENCH_COMMIT holds, or None.
    """
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603, S607
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("BENCH_COMMIT")
    return found[0] + ("+" if found[1] else "")


def _read_checkpoint(place: CellFolder, made_by: str) -> dict[str, Any] | None:
    """What a checkpoint holds; None without one that can be used. One of other code of the user's is dropped."""
    raw = place.read_checkpoint()
    if raw is None:
        return None
    state = checkpoint.unpack(raw)
    if state is None:
        place.set_aside_checkpoint()
        return None
    if own_part(state.get("source")) not in (None, own_part(made_by)):
        place.drop_checkpoint()
        return None
    return state


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
