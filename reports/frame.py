"""Records to one tidy table: one row a finished cell, every column documented in `COLUMNS`. No torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.records.record import Cost, Record
from bench.records.store import Problem, Store

COLUMNS = {
    "id": "of the cell",
    "setting": "data set, training images, recipe and, where they differ, precision; only equal settings are ever compared",
    "data": "data set",
    "recipe": "how the networks were trained: epochs, and what else differs between the cells",
    "deviations": "of the recipe from the CIFAR-100 protocol that most papers train by, learning rate and techniques aside",
    "techniques": "of the recipe, as published tables name them: dropout, cutout, the kind of augmentation",
    "student": "architecture",
    "teacher": "architecture that it distilled from, its own for a method that needs a copy of itself; empty without a teacher",
    "teacher_id": "cell that trained this teacher; empty without one, or where the user brought the weights",
    "method": "label",
    "arguments": 'of the method, all of them, as JSON; those of a part under its name, as in {"tfd.weight": 0.005}',
    "needs": "what the method needs: none, teacher or self",
    "seed": "of initialisation, order and augmentation",
    "role": "student, or teacher for cells that were trained only to be one",
    "top1": "% of test images right at the last epoch: the headline, nothing was chosen",
    "top5": "likewise, within five guesses",
    "best_top1": "% at the epoch that is best on the test set, as much of the field reports it",
    "best_epoch": "that epoch",
    "flattery": "points that choosing the epoch on the test set adds: best_top1 - top1",
    "chosen_top1": "% at the epoch chosen on the validation split; empty without a split",
    "epochs": "main phase, as run",
    "steps": "optimiser steps of the main phase",
    "prepare_steps": "optimiser steps of the preparation phase",
    "train_samples": "training images",
    "parameters": "in the network that is used after training",
    "train_only": "parameters trained beside it and dropped",
    "flops": "training: steps x FLOPs of a step, preparation included, the teacher's forward passes included, its training not",
    "prepare_flops": "the preparation's part of it",
    "teacher_flops": "of the teacher's own training; 0 without a teacher, empty where unknown",
    "told_s": "seconds that a teacher's training took which the user brought, as told; empty otherwise",
    "users": "cells that learned from this teacher",
    "wall_train_s": "seconds of the real run; it may have shared its machine, never compare",
    "run_on": "hardware of the real run",
    "cost_key": "same for all cells whose steps cost the same",
    "where": "hardware of the exclusive probe that the columns below come from",
    "step_ms": "median step of the exclusive probe",
    "train_s": "training: steps x step_ms, preparation included, the teacher's training not",
    "prepare_s": "the preparation's part of it",
    "train_s_low": "likewise with the lower quartile of the step",
    "train_s_high": "likewise with the upper quartile",
    "teacher_s": "seconds of the teacher's own training; 0 without a teacher, empty where unknown",
    "whole_s": "train_s with the teacher's training whole",
    "amortised_s": "train_s with the teacher's training divided by `users`",
    "peak_mib": "most device memory that tensors hold during a step",
    "host_peak_mib": "most main memory of the probing process during a step, the program and the data included",
    "energy_kj": "training: steps x energy of a step, preparation included, the teacher's not; empty where not measured",
    "latency_ms": "deployed network, one image",
    "images_per_s": "deployed network, a batch of the training's size",
}
"""What each column of the tidy frame means. Accuracies in %, differences in points, times in seconds unless named otherwise."""

PAIR_COLUMNS = ["setting", "student", "pair_teacher"]
TECHNIQUES = ("dropout", "cutout", "augment")  # fields of a recipe that published tables add to a method
KEPT_OUT = "kept out of every table and verdict"


def load(folder: str | Path, grid: str | None = None, where: str | None = None) -> pd.DataFrame:
    """The tidy frame of a results folder, for notebooks; its columns are explained in `reports.COLUMNS`.

    Args:
        folder: results folder, the one that holds the grids' folders.
        grid: name; by default the folder's only grid.
        where: hardware that the times come from; by default the one that timed most cells. Hardware is never mixed.

    Raises:
        ValueError: no grid was named and there is not exactly one.
    """
    store = Store(folder)
    if grid is None:
        grids = store.grids()
        if len(grids) != 1:
            raise ValueError(f"name one of the grids in {folder}: {', '.join(grids) or 'there are none'}")
        grid = grids[0]
    return bill(tidy(read(store, grid)[0]), store.costs(grid)[0], where)


def read(store: Store, grid: str) -> tuple[list[Record], list[Problem]]:
    """The grid's records that are fit for comparison, teachers included, and what is wrong with the others."""
    records, problems = store.records(grid)
    wanted = {cell["id"] for cell in store.manifest(grid)["cells"]}
    wanted |= {record.cell.teacher.cell for record in records if record.id in wanted and record.cell.teacher}
    stray = [
        Problem(f"{grid}/{record.id}", "no longer part of the grid; left out") for record in records if record.id not in wanted
    ]
    good, unsound = sound(record for record in records if record.id in wanted)
    return good, [*problems, *unsound, *stray]


def read_curves(store: Store, grid: str, records: Iterable[Record]) -> tuple[dict[str, Curve], list[Problem]]:
    """Accuracy after every epoch of every record, by id; and the files that cannot be used."""
    curves, problems = {}, []
    for record in records:
        try:
            curves[record.id] = Curve.parse(store.curves(grid, record))
        except ValueError as error:
            problems.append(Problem(f"{grid}/{record.id}/curves.csv", f"{error}; left out of the curves"))
    return curves, problems


class Curve(NamedTuple):
    """What one training measured after each epoch, from the first."""

    top1: np.ndarray  # %, on the test set
    validation: np.ndarray  # %, on the validation split; NaN without one

    @classmethod
    def parse(cls, text: str) -> Curve:
        """From the CSV beside a record.

        Raises:
            ValueError: a column is missing, a value is no number, or the epochs are not 1, 2, 3, ...
        """
        head, *lines = text.splitlines() or [""]
        names, rows = head.split(","), [line.split(",") for line in lines]
        if not {"epoch", "test_top1"} <= set(names) or any(len(row) != len(names) for row in rows):
            raise ValueError("a column is missing, or a row is cut short")
        if [row[names.index("epoch")] for row in rows] != [str(epoch + 1) for epoch in range(len(rows))] or not rows:
            raise ValueError("its epochs are not 1, 2, 3, ...")

        def column(name: str) -> np.ndarray:
            at = names.index(name) if name in names else None
            return np.array([float(row[at] or "nan") if at is not None else math.nan for row in rows])

        return cls(column("test_top1"), column("val_top1"))


def sound(records: Iterable[Record]) -> tuple[list[Record], list[Problem]]:
    """The records fit for comparison, and what is wrong with the others: not a number, or one cell with two results."""
    good: dict[str, Record] = {}
    problems, twice = [], set()
    for record in records:
        values = [record.accuracies.last.top1, record.accuracies.last.top5, record.accuracies.best_test.top1]
        if not all(math.isfinite(value) for value in values):
            problems.append(Problem(record.id, f"an accuracy is not a number; {KEPT_OUT}"))
        elif record.id in good and good[record.id].accuracies != record.accuracies:
            twice.add(record.id)
        else:
            good[record.id] = record
    problems += [Problem(name, f"recorded more than once, with different results; {KEPT_OUT}") for name in sorted(twice)]
    return [record for record in good.values() if record.id not in twice], problems


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, everything but the probe's columns, which `bill` adds. Ids must be unique, see `sound`."""
    known = [*COLUMNS][: [*COLUMNS].index("where")]
    if not records:
        return pd.DataFrame(columns=known)
    frame = pd.DataFrame([_row(record) for record in records], columns=known + list(_SPECS))
    frame["data"] = data = _named(frame["_data"], lambda spec: str(spec.get("name") or spec["type"]))
    frame["recipe"] = _named(frame["_recipe"], lambda spec: f"{spec['epochs']} epochs")
    frame["setting"] = frame["data"] + frame["train_samples"].map(", {:,} images, ".format) + frame["recipe"]
    if frame["_precision"].nunique() > 1:
        frame["setting"] += ", " + frame["_precision"]
    frame["student"] = _named(frame["_student"], _architecture, within=data)
    teacher = _named(frame["_teacher"], lambda spec: _architecture(spec) if spec else "", within=data)
    frame["teacher"] = [
        name + f" (weights {sha[:8]})" * bool(sha) for name, sha in zip(teacher, frame["_weights"], strict=True)
    ]
    group = frame["setting"] + "\n" + frame["student"] + "\n" + frame["teacher"]
    frame["method"] = _named(frame["_method"], lambda spec: spec["label"], within=group)
    twice = frame.assign(group=group).duplicated(
        ["group", "method", "seed"], keep=False
    )  # one seed, several trainings of the teacher
    frame.loc[twice, "method"] += " (taught by " + frame["teacher_id"].str[-12:] + ")"
    frame["users"] = frame["teacher_id"].map(frame["teacher_id"].value_counts()).where(frame["teacher_id"] != "", 0).astype(int)
    brought = frame["_weights"] + frame["_teacher"].map(lambda spec: json.dumps(spec, sort_keys=True) if spec else "")
    of_brought = brought.map(brought.value_counts())
    frame["users"] = frame["users"].where((frame["teacher_id"] != "") | (brought == ""), of_brought).astype(int)
    by_id = frame.drop_duplicates("id").set_index("id")
    measured = frame["teacher_id"].map(by_id["flops"]).astype(float)
    frame["teacher_flops"] = measured.fillna(frame["_told_flops"].astype(float)).where(frame["needs"] != "none", 0.0)
    only_taught = frame["id"].isin(set(frame["teacher_id"])).groupby([frame["setting"], frame["student"]]).transform("all")
    frame["role"] = only_taught.map({True: "teacher", False: "student"})
    return frame.drop(columns=list(_SPECS))


def _architecture(spec: dict[str, Any]) -> str:
    """The model; of a library's network its name there."""
    return str(spec.get("name") or spec["type"])


_SPECS = ("_data", "_recipe", "_precision", "_student", "_teacher", "_weights", "_told_flops", "_method")


def _row(record: Record) -> dict[str, Any]:
    cell, accuracies = record.cell, record.accuracies
    method = cell.identity["method"]  # without arguments that are newer than some records and at their default
    taught = cell.teacher if cell.needs != "none" else None
    return {
        "id": record.id,
        "teacher_id": (taught.cell if taught else None) or "",
        "needs": cell.needs,
        "seed": cell.seed,
        "top1": accuracies.last.top1,
        "top5": accuracies.last.top5,
        "best_top1": accuracies.best_test.top1,
        "best_epoch": accuracies.best_test.epoch,
        "flattery": accuracies.best_test.top1 - accuracies.last.top1,
        "chosen_top1": accuracies.chosen.top1 if accuracies.chosen else math.nan,
        "epochs": record.epochs,
        "steps": record.steps,
        "prepare_steps": record.prepare_steps,
        "train_samples": record.train_samples,
        "parameters": record.parameters.deployed,
        "train_only": record.parameters.train_only,
        "flops": float(record.steps * record.flops.step + record.prepare_steps * record.flops.prepare_step),
        "prepare_flops": float(record.prepare_steps * record.flops.prepare_step),
        "wall_train_s": record.clocks.train_s,
        "deviations": _deviations(cell.recipe),
        "techniques": techniques(cell.recipe),
        "run_on": record.machine.hardware,
        "cost_key": cell.cost_key,
        "_data": {name: value for name, value in cell.data.items() if name != "path"},
        "_recipe": cell.recipe.model_dump(mode="json") | {"protocol": cell.protocol},
        "_precision": cell.precision,
        "_student": cell.student,
        "_teacher": taught.model if taught else {},
        "_weights": (taught.weights_sha256 if taught else None) or "",
        "_told_flops": taught.train_flops if taught and taught.train_flops is not None else math.nan,
        "told_s": taught.train_s if taught and taught.train_s is not None else math.nan,
        "arguments": json.dumps(arguments(method)),
        "_method": method | {"version": cell.method_version, "label": cell.label or str(cell.method["type"])},
    }


def arguments(spec: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a method and of those within it, by "<registry key>.<argument>"; of a key's second use "kd2.weight"."""
    found: dict[str, Any] = {}
    for count, part in _numbered(nested(spec)):
        own = {name: value for name, value in part.items() if name != "type" and not _methods_in(value)}
        found |= {f"{part['type']}{count}.{name}": value for name, value in own.items()}
    return found


def nested(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A method's spec and those of all methods within it."""
    return [spec, *(inner for value in spec.values() for part in _methods_in(value) for inner in nested(part))]


def _methods_in(value: Any) -> list[dict[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict) and "type" in item]


def _numbered(specs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("", spec) for a registry key's first use, ("2", spec) for its second."""
    used: dict[str, int] = defaultdict(int)
    for spec in specs:
        used[spec["type"]] += 1
        yield (str(used[spec["type"]]) if used[spec["type"]] > 1 else ""), spec


def _deviations(recipe: Any) -> str:
    usual = type(recipe)()  # the defaults are that protocol
    names = [name for name in type(recipe).model_fields if getattr(recipe, name) != getattr(usual, name)]
    return ", ".join(f"{name}={getattr(recipe, name)}" for name in names if name not in ("lr", *TECHNIQUES))


def techniques(recipe: Any) -> str:
    """'dropout, auto_augment': what a recipe adds to the usual training."""
    values = {name: getattr(recipe, name) for name in TECHNIQUES}
    return ", ".join(value if isinstance(value, str) else name for name, value in values.items() if value and value != "none")


def _named(
    specs: pd.Series, base: Callable[[dict[str, Any]], str], within: Sequence[str] | pd.Series | None = None
) -> list[str]:
    """A name for every spec, equal only for equal specs: the base name, and the values in which its namesakes differ."""
    groups = within if within is not None else [""] * len(specs)
    keys = [(group, base(spec), json.dumps(spec, sort_keys=True)) for group, spec in zip(groups, specs, strict=True)]
    namesakes: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for (group, name, text), spec in zip(keys, specs, strict=True):
        namesakes[group, name][text] = spec
    names: dict[tuple[str, str, str], str] = {}
    for (group, name), variants in namesakes.items():
        differing = sorted(
            key
            for key in set().union(*variants.values())
            if len({json.dumps(v.get(key), sort_keys=True) for v in variants.values()}) > 1
        )
        for text, spec in variants.items():
            values = ", ".join(f"{key}={str(spec.get(key))[:24]}" for key in differing)
            names[group, name, text] = f"{name} ({values})" if values else name
    return [names[key] for key in keys]


def places(costs: Iterable[Cost]) -> list[str]:
    """The hardware that costs were measured on, the one that timed most first."""
    count: dict[str, int] = defaultdict(int)
    for cost in costs:
        count[place(cost)] += 1
    return sorted(count, key=lambda name: (-count[name], name))


def place(cost: Cost) -> str:
    """Hardware of a probe, with the threads where they do the work."""
    threads = f", {cost.threads} thread{'s' * (cost.threads != 1)}" if cost.machine.device == "cpu" else ""
    return cost.machine.hardware + threads


def bill(frame: pd.DataFrame, costs: Iterable[Cost], where: str | None = None) -> pd.DataFrame:
    """The frame with the probe's columns, all from one hardware; cells that were not timed there have empty ones.

    A time is steps x the probe's step, so it does not matter where a cell was trained, only where it was probed.
    """
    costs = list(costs)
    where = where or next(iter(places(costs)), "")
    at = {cost.key: cost for cost in costs if place(cost) == where}
    nan = math.nan

    def of(get: Callable[[Cost], float | None]) -> pd.Series:
        values = {key: get(cost) for key, cost in at.items()}
        return frame["cost_key"].map(values).astype(float)

    frame = frame.copy()
    frame["where"] = where
    for column, name in {"train_s": "median_ms", "train_s_low": "low_ms", "train_s_high": "high_ms"}.items():
        step = of(lambda cost, name=name: getattr(cost.step, name))  # type: ignore[misc]
        prepare = of(lambda cost, name=name: getattr(cost.prepare_step, name) if cost.prepare_step else nan)  # type: ignore[misc]
        prepare_ms = (frame["prepare_steps"] * prepare).where(frame["prepare_steps"] > 0, 0.0)
        frame[column] = (frame["steps"] * step + prepare_ms) / 1000
        if column == "train_s":
            frame["prepare_s"] = prepare_ms / 1000
    frame["step_ms"] = of(lambda cost: cost.step.median_ms)
    of_teacher = frame["teacher_id"].map(frame.drop_duplicates("id").set_index("id")["train_s"])
    frame["teacher_s"] = of_teacher.astype(float).fillna(frame["told_s"]).where(frame["needs"] != "none", 0.0)
    frame["whole_s"] = frame["train_s"] + frame["teacher_s"]
    frame["amortised_s"] = frame["train_s"] + frame["teacher_s"] / frame["users"].clip(lower=1)
    frame["peak_mib"] = of(lambda cost: cost.peak_mib)
    frame["host_peak_mib"] = of(lambda cost: cost.host_peak_mib)
    prepare_j = frame["prepare_steps"] * of(lambda cost: cost.energy_j_per_prepare_step)
    energy_j = frame["steps"] * of(lambda cost: cost.energy_j_per_step) + prepare_j.where(frame["prepare_steps"] > 0, 0.0)
    frame["energy_kj"] = energy_j / 1000
    frame["latency_ms"] = of(lambda cost: cost.latency.median_ms if cost.latency else nan)
    frame["images_per_s"] = of(lambda cost: cost.inference_batch / cost.inference.median_ms * 1000 if cost.inference else nan)
    return frame[[*COLUMNS]]


def by_pair(frame: pd.DataFrame) -> pd.DataFrame:
    """The students' rows, once for every (student, teacher) pair that they belong to, with `pair_teacher` and `pair`.

    A pair is a student and a teacher that some method distilled from; a teacher-free row belongs to all pairs of its student
    in its setting, or, where it has no teacher, to the pair (student, no teacher).
    """
    students = frame[frame["role"] == "student"]
    taught = students["needs"] == "teacher"
    pairs = (
        students.loc[taught, ["setting", "student", "teacher"]].drop_duplicates().rename(columns={"teacher": "pair_teacher"})
    )
    free = students[~taught].merge(pairs, on=["setting", "student"], how="left").fillna({"pair_teacher": ""})
    rows = pd.concat([students[taught].assign(pair_teacher=students.loc[taught, "teacher"]), free], ignore_index=True)
    arrow = (rows["pair_teacher"] + " → ").where(rows["pair_teacher"] != "", "")
    rows["pair"] = arrow + rows["student"]
    return rows.sort_values([*PAIR_COLUMNS, "method", "seed"], ignore_index=True)
