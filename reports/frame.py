"""Records to one tidy table: one row a finished cell, every column documented in `COLUMNS`. No torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.records import naming
from bench.records.cell import Cell, Recipe, Spec, digest
from bench.records.record import Cost, Record
from bench.records.teacher import source_of
from bench.records.trials import trials_of
from bench.texts import one_line

SHARED_BY = 10  # students that share a teacher, in the price that says so

COLUMNS = {
    "id": "of the cell",
    "setting": "data set, training images, recipe and, where they differ, precision; only equal settings are ever compared",
    "precision": "of the trained network's arithmetic: bf16 or fp32",
    "data": "data set",
    "recipe": "how the networks were trained: epochs, and what else differs between the cells",
    "deviations": "of the recipe from the CIFAR-100 protocol that most papers train by, learning rate and techniques aside",
    "techniques": "of the recipe, as published tables name them: dropout, cutout, the kind of augmentation",
    "student": "architecture",
    "teacher": "architecture of the teacher, the student's own for a method that needs a copy of itself; empty without one",
    "teacher_id": "cell that trained this teacher; empty without a teacher, or where the user supplied the weights",
    "method_id": "digest of the method's spec, at today's defaults, and of its version: the same for the same method",
    "family": "registry keys of the method: kd, tfd+kd",
    "label": "the method's name, from its spec and today's defaults: kd, tfd(ramp_epochs=1); never compared",
    "at_defaults": "whether every argument of the method has its default of today",
    "as_published": "whether every argument has its default or a preset's value, which are the published ones",
    "tuned_elsewhere": "whether a part of the method has the values that were published for this very pair: somebody searched",
    "arguments": 'of the method, all of them, as JSON; those of a part under its name, as in {"tfd.weight": 0.005}',
    "needs": "what the method needs: none, teacher or self",
    "seed": "of initialization, order and augmentation",
    "role": "student; teacher for cells that were trained only to be one; at equal cost, see `reports.equal_cost`",
    "top1": "% of test images right at the last epoch: the headline, nothing was chosen",
    "top5": "likewise, within five guesses",
    "best_top1": "% at the epoch that is best on the test set, as much of the field reports it",
    "best_epoch": "that epoch",
    "flattery": "points that choosing the epoch on the test set adds: best_top1 - top1",
    "chosen_top1": "% at the epoch chosen on the validation split; empty without a split",
    "train_top1": "% of training images right in the end, without augmentation; empty in older records, as the next two",
    "test_nll": "mean negative log-likelihood of the test set, nats",
    "test_calibration_error": "expected calibration error on the test set, %",
    "epochs": "main phase, as run",
    "steps": "optimizer steps of the main phase",
    "prepare_steps": "optimizer steps of the preparation phase",
    "train_samples": "training images",
    "parameters": "in the network that is used after training",
    "train_only": "parameters trained beside it and dropped",
    "flops": "training: steps x FLOPs of a step, preparation included, the teacher's forward passes included, its training not",
    "prepare_flops": "the preparation's part of it",
    "teacher_flops": "of the teacher's own training; 0 without a teacher, empty where unknown",
    "more_teachers": "ids of the cells of further teachers that taught beside it, by spaces",
    "more_stated_s": "seconds that training those took that were not trained here, as stated; 0 without any",
    "stated_s": "seconds that training a teacher took, as stated by the user who supplied it; empty otherwise",
    "users": "cells that learned from this teacher",
    "wall_train_s": "seconds of the real run; it may have shared its machine, never compare",
    "run_on": "hardware of the real run",
    "ran": "what may change an accuracy: cpu, or the GPU's model and whether steps were eager or a graph",
    "cost_key": "same for all cells whose steps cost the same",
    "where": "hardware of the exclusive probe that the columns below come from",
    "step_ms": "median step of the exclusive probe",
    "train_s": "training: steps x step_ms, preparation included, the teacher's training not",
    "prepare_s": "the preparation's part of it",
    "train_s_low": "likewise with the lower quartile of the step",
    "train_s_high": "likewise with the upper quartile",
    "teacher_s": "seconds of the teacher's own training; 0 without a teacher, empty where unknown",
    "with_teacher_s": "train_s + teacher_s",
    "shared_teacher_s": f"train_s + teacher_s / {SHARED_BY}; a copy of itself is not shared",
    "peak_mib": "most device memory that tensors hold during a step",
    "host_peak_mib": "most main memory of the probing process during a step, the program and the data included",
    "energy_kj": "training: steps x energy of a step, preparation included, the teacher's not; empty where not measured",
    "energy_kj_low": "likewise, by the lowest of the meter's windows",
    "energy_kj_high": "likewise, by the highest",
    "latency_ms": "deployed network, one image",
    "images_per_s": "deployed network, a batch of the training's size",
}
"""What each column of the tidy frame means. Accuracies in %, differences in points, times in seconds unless named otherwise."""

PAIR_COLUMNS = ["setting", "student", "pair_teacher"]
AT_EQUAL_COST = "at equal cost"  # the role of cells that tables of the full schedule leave out
TECHNIQUES = ("dropout", "cutout", "augment")  # fields of a recipe that published tables add to a method


def tidy(
    records: Sequence[Record], plugins: naming.Plugins | None = None, labels: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row a record, everything but the probe's columns, which `with_costs` adds.

    Args:
        records: of unique ids, see `reports.reading.sound`.
        plugins: signatures of methods that do not ship with the bench, see `naming.plugins_of`.
        labels: of the user's own, by the id of a cell, see `naming.own_labels`.
    """
    known = [*COLUMNS][: [*COLUMNS].index("where")]
    if not records:
        return pd.DataFrame(columns=known)
    methods = _Methods(plugins, labels or {})
    frame = pd.DataFrame([_row(record, methods) for record in records], columns=known + list(_SPECS))
    frame["data"] = naming.distinct(frame["_data"], naming.data_name)
    frame["recipe"] = naming.distinct(frame["_recipe"], lambda spec: f"{spec['epochs']} epochs")
    frame["setting"] = conditions(frame)
    if frame["precision"].nunique() > 1:
        frame["setting"] += ", " + frame["precision"]
    frame["student"] = naming.distinct(frame["_student"], naming.model_name, within=frame["data"])
    teacher = naming.distinct(frame["_teacher"], lambda spec: naming.model_name(spec) if spec else "", within=frame["data"])
    supplied = " (weights " + frame["_weights"].str[:8] + ")"
    frame["teacher"] = teacher + supplied.where(frame["_weights"] != "", "") + frame["_more"]
    _name_methods(frame)
    frame["users"] = _users(frame)
    by_id = frame.drop_duplicates("id").set_index("id")
    measured = frame["teacher_id"].map(by_id["flops"]).astype(float)
    teacher_flops = measured.fillna(frame["_stated_flops"].astype(float)).where(frame["needs"] != "none", 0.0)
    frame["teacher_flops"] = teacher_flops + _of_more(frame, by_id["flops"]) + frame["_more_flops"].astype(float)
    teaching = {name for column in ("teacher_id", "more_teachers") for names in frame[column] for name in names.split()}
    only_teaches = frame["id"].isin(teaching).groupby([frame["setting"], frame["student"]]).transform("all")
    frame["role"] = only_teaches.map({True: "teacher", False: "student"})
    frame = frame.drop(columns=list(_SPECS))
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        text = "".join(value for value in frame[name] if isinstance(value, str))
        if one_line(text) != text:
            frame[name] = frame[name].map(lambda value: one_line(value) if isinstance(value, str) else value)
    return frame


def tidy_by(manifest: Mapping[str, Any], records: Sequence[Record]) -> pd.DataFrame:
    """The tidy frame of a grid's records, with what its manifest knows of methods and cells. Without trials of values."""
    trials = trials_of(manifest)
    records = [record for record in records if record.id not in trials]
    frame = tidy(records, naming.plugins_of(manifest), naming.own_labels(manifest))
    steps = frame["id"].map(naming.steps_of_full_schedules(manifest)).astype(object)  # their costs are timed once
    frame["cost_key"] = frame["cost_key"].where(steps.isna(), steps)
    frame["role"] = frame["role"].mask(steps.notna(), AT_EQUAL_COST)
    return frame


def conditions(frame: pd.DataFrame) -> pd.Series:
    """Data set, training images and recipe: the setting without the precision."""
    return frame["data"] + frame["train_samples"].map(", {:,} images, ".format) + frame["recipe"]


def _name_methods(frame: pd.DataFrame) -> None:
    """Make every label the name of one method. Where a seed trained it with several teachers, each of these is a method."""
    frame["label"] = naming.distinct(frame["_method"], lambda spec: spec["label"])
    frame["label"] = frame.groupby("method_id")["label"].transform("first")  # a stored label may differ for one spec
    seeds = ["setting", "student", "teacher", "method_id", "seed"]
    twice = frame.duplicated(seeds, keep=False)
    frame.loc[twice, "label"] += " (teacher " + frame["teacher_id"].str[-12:] + ")"
    frame.loc[twice, "method_id"] += "-" + frame["teacher_id"].str[-12:]


def _of_more(frame: pd.DataFrame, cost: pd.Series) -> pd.Series:
    """Sum of a cost, by a cell's id, over the further teachers of each row; NaN where one is unknown."""
    return frame["more_teachers"].map(lambda ids: float(sum(cost.get(each, math.nan) for each in ids.split()))).astype(float)


def _users(frame: pd.DataFrame) -> pd.Series:
    """How many cells learned from each row's teacher; 0 without one."""
    trained_here = frame["teacher_id"].map(frame["teacher_id"].value_counts())
    supplied = frame["_weights"] + frame["_teacher"].map(lambda spec: json.dumps(spec, sort_keys=True) if spec else "")
    from_elsewhere = supplied.map(supplied.value_counts()).where(supplied != "", 0)
    return trained_here.where(frame["teacher_id"] != "", from_elsewhere).astype(int)


_SPECS = ("_data", "_recipe", "_student", "_teacher", "_weights", "_stated_flops", "_more", "_more_flops", "_method")


class _MethodFacts(NamedTuple):
    """A method's columns of the frame."""

    columns: dict[str, Any]
    naming: dict[str, Any]  # what distinguishes it from a method of the same label


class _Methods:
    """Facts of methods, each worked out once."""

    def __init__(self, plugins: naming.Plugins | None, labels: Mapping[str, str]) -> None:
        self.plugins, self.labels = plugins, labels
        self.known: dict[str, _MethodFacts] = {}

    def of_cell(self, cell: Cell, cell_id: str, identity: Spec) -> _MethodFacts:
        """The facts of a cell's method.

        Args:
            identity: its spec without arguments that are newer than some records and at their default.
        """
        pair = naming.pair_name(cell.teacher.model if cell.teacher else None, cell.student)
        own = self.labels.get(cell_id)
        key = json.dumps([identity, pair, cell.method_version, cell.label, own], sort_keys=True)
        if key not in self.known:
            short = naming.short_form(identity, pair, self.plugins)
            label = own or naming.method_label(identity, pair, self.plugins, stored=cell.label)
            told_apart = {**short, "version": cell.method_version}
            columns = {
                "method_id": digest(told_apart)[:12],
                "family": naming.method_family(identity),
                "at_defaults": naming.is_default(short),
                "as_published": naming.is_published(short),
                "tuned_elsewhere": any(part.get("preset") == "pair" for part in naming.nested(short)),
                "arguments": json.dumps(arguments(naming.full_form(identity, self.plugins))),
            }
            self.known[key] = _MethodFacts(columns, {**told_apart, "label": label})
        return self.known[key]


def _row(record: Record, methods: _Methods) -> dict[str, Any]:
    cell, accuracies = record.cell, record.accuracies
    method = methods.of_cell(cell, record.id, cell.identity["method"])
    teacher = cell.teacher if cell.needs != "none" else None
    more = teacher.others if teacher else ()
    supplied = [each for each in more if not each.cell]
    return {
        "id": record.id,
        "precision": cell.precision,
        "teacher_id": (teacher.cell if teacher else None) or "",
        "needs": cell.needs,
        "seed": cell.seed,
        "top1": accuracies.last.top1,
        "top5": accuracies.last.top5,
        "best_top1": accuracies.best_test.top1,
        "best_epoch": accuracies.best_test.epoch,
        "flattery": accuracies.best_test.top1 - accuracies.last.top1,
        "chosen_top1": accuracies.chosen.top1 if accuracies.chosen else math.nan,
        "train_top1": math.nan if record.train_top1 is None else record.train_top1,
        "test_nll": math.nan if record.test_nll is None else record.test_nll,
        "test_calibration_error": math.nan if record.test_calibration_error is None else record.test_calibration_error,
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
        "run_on": record.hardware,
        "ran": record.ran,
        "cost_key": cell.cost_key,
        "_data": {name: value for name, value in cell.data.items() if name != "path"},
        "_recipe": cell.recipe.model_dump(mode="json") | {"protocol": cell.protocol},
        "_student": cell.student,
        "_teacher": teacher.model if teacher else {},
        "_weights": (teacher.weights_sha256 if teacher else None) or "",
        "_stated_flops": teacher.train_flops if teacher and teacher.train_flops is not None else math.nan,
        "more_teachers": " ".join(each.cell for each in more if each.cell),
        "more_stated_s": sum(math.nan if each.train_s is None else each.train_s for each in supplied),
        "_more": "".join(f" + {name}" for name in source_of(cell).split(" + ")[1:]) if more else "",
        "_more_flops": sum(math.nan if each.train_flops is None else each.train_flops for each in supplied),
        "stated_s": teacher.train_s if teacher and teacher.train_s is not None else math.nan,
        **method.columns,
        "_method": method.naming,
    }


def arguments(spec: Spec) -> dict[str, Any]:
    """All arguments of a method and of those within it, by "<registry key>.<argument>"; of a key's second use "kd2.weight"."""
    found: dict[str, Any] = {}
    for count, part in _numbered(naming.nested(spec)):
        own = {name: value for name, value in part.items() if name != "type" and not naming.methods_in(value)}
        found |= {f"{part['type']}{count}.{name}": value for name, value in own.items()}
    return found


def _numbered(specs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("", spec) for a registry key's first use, ("2", spec) for its second."""
    used: dict[str, int] = defaultdict(int)
    for spec in specs:
        used[spec["type"]] += 1
        yield (str(used[spec["type"]]) if used[spec["type"]] > 1 else ""), spec


def _deviations(recipe: Recipe) -> str:
    usual = type(recipe)()  # the defaults are that protocol
    names = [name for name in type(recipe).model_fields if getattr(recipe, name) != getattr(usual, name)]
    return ", ".join(f"{name}={naming.shown(getattr(recipe, name))}" for name in names if name not in ("lr", *TECHNIQUES))


def techniques(recipe: Recipe) -> str:
    """'dropout, auto_augment': what a recipe adds to the usual training."""
    values = {name: getattr(recipe, name) for name in TECHNIQUES}
    return ", ".join(_technique(name, value) for name, value in values.items() if value and value != "none")


def _technique(name: str, value: Any) -> str:
    """The field's name, or what it names itself, as 'auto_augment'."""
    if isinstance(value, list | tuple):
        return ", ".join(_technique(name, each) for each in value)
    return value["type"] if isinstance(value, dict) else value if isinstance(value, str) else name


def places(costs: Iterable[Cost]) -> list[str]:
    """The hardware that costs were measured on, the one that timed most first."""
    count: dict[str, int] = defaultdict(int)
    for cost in costs:
        count[place(cost)] += 1
    return sorted(count, key=lambda name: (-count[name], name))


def place(cost: Cost) -> str:
    """Hardware of a probe, with the threads where they do the work, and on a GPU with the way in which steps were run."""
    threads = f", {cost.threads} thread{'s' * (cost.threads != 1)}" if cost.machine.device == "cpu" else ""
    path = f", {cost.path} steps" if cost.path else ""
    return cost.machine.hardware + threads + path


def with_costs(frame: pd.DataFrame, costs: Iterable[Cost], where: str | None = None) -> pd.DataFrame:
    """The frame with the probe's columns, all from one hardware; cells that were not timed there have empty ones.

    A time is steps x the probe's step, so it does not matter where a cell was trained, only where it was probed.

    Args:
        where: hardware as `place` names it; by default the one that timed most cells.
    """
    costs = list(costs)
    where = where or next(iter(places(costs)), "")
    at = {cost.key: cost for cost in costs if place(cost) == where}
    nan = math.nan

    def probed(get: Callable[[Cost], float | None]) -> pd.Series:
        values = {key: get(cost) for key, cost in at.items()}
        return frame["cost_key"].map(values).astype(float)

    frame = frame.copy()
    frame["where"] = where
    for column, name in {"train_s": "median_ms", "train_s_low": "low_ms", "train_s_high": "high_ms"}.items():
        step = probed(lambda cost, name=name: getattr(cost.step, name))  # type: ignore[misc]
        prepare = probed(lambda cost, name=name: getattr(cost.prepare_step, name) if cost.prepare_step else nan)  # type: ignore[misc]
        prepare_ms = (frame["prepare_steps"] * prepare).where(frame["prepare_steps"] > 0, 0.0)
        frame[column] = (frame["steps"] * step + prepare_ms) / 1000
        if column == "train_s":
            frame["prepare_s"] = prepare_ms / 1000
    frame["step_ms"] = probed(lambda cost: cost.step.median_ms)
    train_s = frame.drop_duplicates("id").set_index("id")["train_s"]
    teacher_s = frame["teacher_id"].map(train_s).astype(float).fillna(frame["stated_s"]).where(frame["needs"] != "none", 0.0)
    frame["teacher_s"] = teacher_s + _of_more(frame, train_s) + frame["more_stated_s"]
    frame["with_teacher_s"] = frame["train_s"] + frame["teacher_s"]
    frame["shared_teacher_s"] = frame["train_s"] + frame["teacher_s"] / sharing(frame)
    frame["peak_mib"] = probed(lambda cost: cost.peak_mib)
    frame["host_peak_mib"] = probed(lambda cost: cost.host_peak_mib)
    prepare_j = frame["prepare_steps"] * probed(lambda cost: cost.energy_j_per_prepare_step)
    energy_j = frame["steps"] * probed(lambda cost: cost.energy_j_per_step) + prepare_j.where(frame["prepare_steps"] > 0, 0.0)
    frame["energy_kj"] = energy_j / 1000
    for limit in (min, max):
        share = probed(lambda cost, limit=limit: _of_windows(cost, limit))  # type: ignore[misc]
        frame["energy_kj_low" if limit is min else "energy_kj_high"] = frame["energy_kj"] * share
    frame["latency_ms"] = probed(lambda cost: cost.latency.median_ms if cost.latency else nan)
    batch_ms = probed(lambda cost: cost.inference.median_ms if cost.inference else nan)
    frame["images_per_s"] = probed(lambda cost: cost.inference_batch) / batch_ms.where(batch_ms > 0) * 1000
    return frame[[*COLUMNS]]


def _of_windows(cost: Cost, limit: Callable[[Sequence[float]], float]) -> float:
    """A limit of the meter's windows as a share of their median; NaN where they were not kept."""
    windows = cost.energy_windows_j_per_step
    return limit(windows) / cost.energy_j_per_step if windows and cost.energy_j_per_step else math.nan


def sharing(frame: pd.DataFrame) -> pd.Series:
    """By how many students each row's teacher is shared, in the price that says so."""
    return frame["needs"].map({"teacher": SHARED_BY}).fillna(1)


def by_pair(frame: pd.DataFrame) -> pd.DataFrame:
    """The students' rows, once for every (student, teacher) pair that they belong to, with `pair_teacher` and `pair`.

    A pair is a student and a teacher that some method distilled from; a teacher-free row belongs to all pairs of its student
    in its setting, or, where it has no teacher, to the pair (student, no teacher).
    """
    students = frame[frame["role"] == "student"]
    distilled = students["needs"] == "teacher"
    pairs = (
        students.loc[distilled, ["setting", "student", "teacher"]].drop_duplicates().rename(columns={"teacher": "pair_teacher"})
    )
    free = students[~distilled].merge(pairs, on=["setting", "student"], how="left").fillna({"pair_teacher": ""})
    rows = pd.concat([students[distilled].assign(pair_teacher=students.loc[distilled, "teacher"]), free], ignore_index=True)
    arrow = (rows["pair_teacher"] + " → ").where(rows["pair_teacher"] != "", "")
    rows["pair"] = arrow + rows["student"]
    return rows.sort_values([*PAIR_COLUMNS, "label", "seed"], ignore_index=True)
