"""Records of trainings that never happened, with a known truth, for tests of the reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.records import files
from bench.records.cell import Cell, Teacher
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.naming import method_family
from bench.records.recipe import Recipe
from bench.records.record import Accuracies, Accuracy, Clocks, Cost, Flops, Machine, Parameters, Record, Timing
from reports.design import Design
from reports.frame import places, tidy, with_costs
from reports.pair import pairs_of
from reports.reading import ByImage, Curve
from reports.report import Report
from reports.summary import summary

TRUTH = {"none": 0.0, "ls": 0.0, "tfd": 0.0, "tffd": 0.0, "kd": 1.5, "fitnets": 0.0}  # gains over none, in points
NEEDS = {"none": "none", "ls": "none", "tfd": "none", "tffd": "none", "tfkd_self": "self"}  # all others: teacher
STEP_MS = {"none": 10.0, "ls": 10.0, "tfd": 10.3, "tffd": 10.5}  # all others: 18
MACHINE = Machine(
    host="box",
    device="cpu",
    cpu="Example 3000",
    cores=2,
    memory_mib=8000,
    platform="Linux",
    versions={"python": "3.11", "torch": "2.11"},
)
STAMP = "2026-01-01T00:00:00+00:00"


def cell(
    method: str, seed: int, student: str = "resnet20", teacher: str | None = None, data: str = "cifar100", epochs: int = 240
) -> Cell:
    source = Teacher(cell=teacher_cell(data=data, epochs=epochs).id, model={"type": teacher}) if teacher else None
    return Cell(
        data={"type": data, "train_images": 50000},
        student={"type": student},
        teacher=source,
        method={"type": method},
        method_version=1,
        recipe=Recipe(epochs=epochs),
        seed=seed,
        precision="fp32",
        needs=NEEDS.get(method, "teacher") if teacher else NEEDS.get(method, "none"),
        label=method,
    )


def teacher_cell(student: str = "resnet110", data: str = "cifar100", epochs: int = 240) -> Cell:
    return cell("none", 0, student, data=data, epochs=epochs)


def record(of: Cell, top1: float, curves: str = "", **changes: object) -> Record:
    epochs = of.recipe.epochs
    steps = 10 * epochs
    step_flops = 500 if "110" in of.student["type"] else 100
    values = {
        "id": of.id,
        "cell": of,
        "accuracies": Accuracies(
            last=Accuracy(epoch=epochs, top1=top1, top5=min(100.0, top1 + 15)),
            best_test=Accuracy(epoch=max(1, epochs - 2), top1=min(100.0, top1 + 0.4), top5=min(100.0, top1 + 15)),
            chosen=None,
        ),
        "epochs": epochs,
        "steps": steps,
        "prepare_steps": 0,
        "train_samples": 50000,
        "clocks": Clocks(train_s=steps / 50),
        "neighbours": 0,
        "parameters": Parameters(deployed=278324, train_only=0),
        "flops": Flops(
            step=step_flops + (150 if of.teacher else 0), teacher_forward=150 if of.teacher else 0, prepare_step=0, inference=1
        ),
        "threads": 1,
        "machine": MACHINE,
        "commit": None,
        "started": STAMP,
        "finished": STAMP,
        "weights_sha256": "0" * 64,
        "curves_sha256": digest_of(curves.encode()),
    }
    return Record(**(values | changes))


def curves(epochs: int, top1: float, terms: Sequence[str] = ("ce",)) -> str:
    """A curve that climbs to its last value."""
    head = "epoch,lr,train_s,evaluate_s,test_top1,test_top5,val_top1,val_top5," + ",".join(f"loss_{term}" for term in terms)
    rows = []
    for epoch in range(1, epochs + 1):
        now = top1 * (1 - 0.5 * np.exp(-4 * epoch / epochs)) / (1 - 0.5 * np.exp(-4))
        losses = ",".join(f"{2 / epoch:.4f}" for _ in terms)
        rows.append(f"{epoch},0.05,1.0,0.1,{now:.4f},{min(100, now + 15):.4f},,,{losses}")
    return "\n".join([head, *rows]) + "\n"


def timing(ms: float, wobble: float = 0.02) -> Timing:
    """25 turns evenly spread from `1 - wobble` to `1 + wobble` of their median; a slow one is slow for all."""
    return Timing(turns_ms=tuple(ms * (1 + wobble * (7 * turn % 25 - 12) / 12) for turn in range(25)))


def cost(of: Cell, machine: Machine = MACHINE, step_ms: float | None = None, session: str = "together") -> Cost:
    step = step_ms or (50.0 if "110" in of.student["type"] else STEP_MS.get(of.method["type"], 18.0))
    teacher = 8.0 if of.teacher else 0.0
    parts = {"data": 0.5, "student": 3.0, "teacher": teacher, "method": 0.3, "backward": 5.2, "optimiser": 1.0}
    return Cost(
        key=of.cost_key, label=of.label, example=of.id, student=of.student["type"],
        teacher=of.teacher.model["type"] if of.teacher else "", session=session + of.student["type"],
        step=timing(step), prepare_step=None, parts={name: timing(ms) for name, ms in parts.items()},
        teacher_alone=timing(teacher) if of.teacher else None, inference=timing(20), inference_batch=100, latency=timing(1.5),
        peak_mib=100.0, host_peak_mib=900.0, energy_j_per_step=None, busy_percent=1.0, threads=1, machine=machine,
        measured=STAMP,
    )  # fmt: skip


def draw(
    truth: Mapping[str, float],
    seeds: int,
    rng: np.random.Generator,
    pairs: Sequence[tuple[str, str]] = (("resnet20", "resnet110"),),
    base: float = 69.0,
    spread: float = 0.3,
    epochs: int = 240,
    missing: Sequence[tuple[str, int]] = (),
    data: str = "cifar100",
) -> list[Record]:
    """Records of all pairs, teachers included. `truth`: the true gain of each method over `none`; `missing`: (method, seed)."""
    records = {}
    for student, teacher in pairs:
        big = teacher_cell(teacher, data, epochs)
        records[big.id] = record(big, 74.3, curves(epochs, 74.3))
        shared = rng.normal(0, spread, seeds)  # of a seed, whatever the method
        for method, gain in truth.items():
            needs = NEEDS.get(method, "teacher")
            for seed in range(seeds):
                value = float(np.clip(base + gain + shared[seed] + rng.normal(0, spread), 0, 100))
                if (method, seed) in missing:
                    continue
                one = cell(method, seed, student, teacher if needs == "teacher" else None, data, epochs)
                if needs == "teacher":
                    source = Teacher(cell=big.id, model={"type": teacher})
                    one = one.model_copy(update={"teacher": source})
                records.setdefault(one.id, record(one, value, curves(epochs, value)))
    return list(records.values())


def digest_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def filled(
    root: Path,
    grid: str,
    records: Sequence[Record],
    about: str = "A synthetic grid",
    costs: bool = True,
    by_image: Mapping[str, ByImage] | None = None,
) -> GridFolder:
    """A grid's folder that holds these records, their curves, answers by image and costs."""
    folder = ResultsFolder(root).grid(grid)
    cells = [{"id": one.id, "label": one.cell.label, "family": method_family(one.cell.method)} for one in records]
    folder.write_manifest({"about": about, "cells": cells, "skipped": [], "grid": {"data": "cifar100"}})
    done = set()
    for one in records:
        cell = folder.cell(one.id)
        cell.write_curves(curves(one.epochs, one.accuracies.last.top1))
        if by_image and one.id in by_image:
            cell.write_correct(by_image[one.id].bits)
        cell.write_record(one)
        if costs and one.cell.cost_key not in done:
            done.add(one.cell.cost_key)
            folder.write_cost(cost(one.cell))
    return folder


def record_path(folder: GridFolder, one: Record) -> Path:
    """Of the file that a record lies in."""
    return folder.results.root / folder.name / one.id / "record.json"


def edit(folder: GridFolder, one: Record, change: Mapping[str, object], seal: bool = False) -> None:
    """Change a record's file by hand; with `seal`, as a program of another version would write it."""
    path = record_path(folder, one)
    body = {key: value for key, value in json.loads(path.read_text()).items() if not seal or key != "sha256"} | dict(change)
    if seal:
        files.write_json(path, body)
    else:
        path.write_text(json.dumps(body))


def costs_of(records: Sequence[Record]) -> list[Cost]:
    """One cost for each kind of step."""
    return list({one.cell.cost_key: cost(one.cell) for one in records}.values())


def frame(records: Sequence[Record], costs: Sequence[Cost] | None = None) -> pd.DataFrame:
    """The tidy frame of these records, with the costs of all of them unless others are given."""
    return with_costs(tidy(records), costs_of(records) if costs is None else costs)


def report(
    records: Sequence[Record],
    costs: Sequence[Cost] | None = None,
    curves: Mapping[str, Curve] | None = None,
    design: Design | None = None,
    by_image: Mapping[str, ByImage] | None = None,
) -> Report:
    """All that a report is made from, without a folder."""
    costs = costs_of(records) if costs is None else costs
    rows = frame(records, costs)
    design = design or Design()
    methods = summary(rows, costs, design)
    pairs = pairs_of(rows, methods, costs, curves or {}, design, by_image)
    manifest = {"cells": [{"id": one.id, "label": one.cell.label} for one in records], "skipped": []}
    return Report(
        grid="synthetic",
        manifest=manifest,
        records=tuple(records),
        costs=tuple(costs),
        curves=curves or {},
        by_image=by_image or {},
        problems=(),
        frame=rows,
        summary=methods,
        pairs=tuple(pairs),
        design=design,
        places=tuple(places(costs)),
    )
