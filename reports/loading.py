"""Results for notebooks: pandas frames from a results folder. No torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import unknown
from bench.records.comparisons import Baseline
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.problems import Problem
from bench.records.record import PARTS_IN_CODE, Cost, Record, Timing
from reports import gains
from reports.bill import SUFFIX
from reports.design import Design
from reports.frame import place, places, tidy_by, with_costs
from reports.pair import baseline_of
from reports.reading import read, read_by_image, read_curves
from reports.summary import summary

ABOUT_CELLS = ["id", "setting", "student", "teacher", "label", "seed"]
CURVE_COLUMNS = {
    **dict.fromkeys(ABOUT_CELLS, "see `COLUMNS`"),
    "epoch": "from 1",
    "lr": "learning rate of the epoch's last step",
    "test_top1, test_top5, val_top1, val_top5": "% after the epoch; val: of the validation split, where there is one",
    "train_s, evaluate_s": "wall seconds so far; never compare them between cells",
    "loss_<term>": "mean of a loss term over the epoch",
    "gradient, gradient_<term>": "norms when the epoch begins: of the loss's gradient, and of each term's; with `run --hook "
    "GradientShares` alone",
    "cosine_<term>": "of the angle between a term's gradient and the cross-entropy's; likewise",
}
"""What each column of `load_curves` means."""
GAIN_COLUMNS = {
    **dict.fromkeys(("setting", "student", "pair_teacher", "pair", "method_id", "label"), "of the method and its pair"),
    "against": "label of the baseline: of none, or of the method that stands for kd",
    **gains.MEANINGS,
}
"""What each column of `load_gains` means."""
TURN_COLUMNS = {
    "cost_key": "as in `COLUMNS`: cells with this key have these steps",
    "label": "the method's name",
    "student": "architecture",
    "teacher": "architecture; empty without one",
    "where": "hardware of the probe",
    "path": "how steps were run; empty in costs of former versions",
    "session": "costs of one session were timed in turn: turns of equal numbers belong together",
    "quantity": "step, prepare_step, a part of the step, teacher_alone, inference (a batch) or latency (an image)",
    "turn": "from 0",
    "ms": "milliseconds",
}
"""What each column of `load_turns` means."""


def load(folder: str | Path, grid: str | None = None, where: str | None = None) -> pd.DataFrame:
    """The tidy frame: one row a finished cell; its columns are explained in `reports.COLUMNS`.

    This and the functions below warn of files that cannot be used, which are left out.

    Args:
        folder: results folder, the one that holds the grids' folders.
        grid: name; by default the folder's only grid.
        where: hardware that the times come from; by default the one that timed most cells. Hardware is never mixed.

    Raises:
        ValueError: no grid was named and there is not exactly one.
        UserError: there is no such grid, or nothing was timed on that hardware.
    """
    at = _grid(folder, grid)
    records, costs = _records(at), _costs(at)
    if where is not None and where not in places(costs):
        raise unknown("hardware", where, places(costs), f"the costs of {at.name}")
    return with_costs(_tidy(at, records), costs, where)


def load_curves(folder: str | Path, grid: str | None = None) -> pd.DataFrame:
    """Learning curves: one row an epoch of each cell; see `reports.CURVE_COLUMNS`.

    Args, warnings, errors: see `load`.
    """
    at = _grid(folder, grid)
    records = _records(at)
    curves, problems = read_curves(at, records)
    _warn(problems)
    parts = [
        pd.read_csv(io.StringIO(at.cell(record.id).curves(record))).assign(id=record.id)
        for record in records
        if record.id in curves
    ]
    cells = _tidy(at, records)[ABOUT_CELLS]
    return cells.merge(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["id", "epoch"]), on="id")


def load_gains(folder: str | Path, grid: str | None = None) -> pd.DataFrame:
    """Gains with the report's intervals and words: one row a method, pair and baseline; see `reports.GAIN_COLUMNS`.

    Args, warnings, errors: see `load`.
    """
    at = _grid(folder, grid)
    records, problems = read(at)
    _warn(problems)
    design = Design.of(at, at.manifest(), records, problems)
    costs = _costs(at)
    frame = with_costs(_tidy(at, records), costs)
    names = [*GAIN_COLUMNS]
    if not (frame["role"] == "student").any():
        return pd.DataFrame(columns=names)
    methods = summary(frame, costs, design)
    found = []
    for _, part in methods.groupby(["setting", "pair"], sort=False):
        for baseline in Baseline:
            base = baseline_of(part, baseline)
            compared = part[part["word" + SUFFIX[baseline]].notna()] if base else part.iloc[:0]
            own = compared[[*names[:6], *(name + SUFFIX[baseline] for name in gains.COLUMNS)]]
            own.columns = pd.Index([*names[:6], *gains.COLUMNS])
            found.append(own.assign(against=base["label"] if base else ""))
    return pd.concat(found, ignore_index=True)[names]


def load_turns(folder: str | Path, grid: str | None = None) -> pd.DataFrame:
    """What the probe measured, turn by turn; see `reports.TURN_COLUMNS`.

    Args, warnings, errors: see `load`.
    """
    at = _grid(folder, grid)
    frame = _tidy(at, _records(at))
    labels = dict(zip(frame["cost_key"], frame["label"], strict=True))
    rows = [
        (
            cost.key,
            labels.get(cost.key, cost.label),
            cost.student,
            cost.teacher,
            place(cost),
            cost.path or "",
            cost.session,
            quantity,
            turn,
            ms,
        )
        for cost in _costs(at)
        for quantity, timing in _timings(cost).items()
        for turn, ms in enumerate(timing.turns_ms)
    ]
    return pd.DataFrame(rows, columns=[*TURN_COLUMNS])


def load_by_image(folder: str | Path, grid: str | None = None) -> Mapping[str, NDArray[np.bool_]]:
    """Which test images each cell classifies correctly after its last epoch: (N,) in the order of the test set, by id.

    Records of former versions lack it. Args, warnings, errors: see `load`.
    """
    at = _grid(folder, grid)
    found, problems = read_by_image(at, _records(at))
    _warn(problems)
    return {cell: answers.correct for cell, answers in found.items()}


def _grid(folder: str | Path, grid: str | None) -> GridFolder:
    results = ResultsFolder(folder)
    if grid is None:
        grids = results.grids()
        if len(grids) != 1:
            raise ValueError(f"name one of the grids in {folder}: {', '.join(grids) or 'there are none'}")
        grid = grids[0]
    return results.grid(grid)


def _records(at: GridFolder) -> list[Record]:
    records, problems = read(at)
    _warn(problems)
    return records


def _costs(at: GridFolder) -> list[Cost]:
    costs, problems = at.costs()
    _warn(problems)
    return costs


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        warnings.warn(f"{problem.path}: {problem.reason}", stacklevel=4)


def _tidy(at: GridFolder, records: list[Record]) -> pd.DataFrame:
    return tidy_by(at.manifest(), records)


def _timings(cost: Cost) -> dict[str, Timing]:
    """By quantity, in today's spelling."""
    named = {name: getattr(cost, name) for name in ("step", "prepare_step", "teacher_alone", "inference", "latency")}
    parts = {PARTS_IN_CODE.get(name, name): timing for name, timing in cost.parts.items()}
    return {name: timing for name, timing in (named | parts).items() if timing}
