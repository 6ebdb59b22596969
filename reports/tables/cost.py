"""What the methods of one pair cost in training, and what they deploy."""

from __future__ import annotations

import pandas as pd

from bench.records.comparisons import Baseline
from bench.stats import CostWord
from reports.frame import SHARED_BY
from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.table import Column, Table, count, number, seconds, text, times

RESOURCES = (
    Column("label", "Method"),
    Column("peak_mib", "Peak device memory, MiB", number(0), "tensors alive together during a training step"),
    Column(
        "host_peak_mib", "Peak host memory, MiB", number(0), "of the probing process: program, data, all methods timed together"
    ),
    Column(
        *("energy_kj", "Energy, kJ", number(1), "of the training, the teacher's own not counted; lowest and highest window"),
        low_high=("energy_kj_low", "energy_kj_high"),
    ),
    Column("train_only", "Train-only parameters", count, "trained beside the student and dropped"),
    Column("parameters", "Deployed parameters", count),
    Column("latency_ms", "Latency, ms", number(2), "deployed network, one image"),
    Column("images_per_s", "Images/s", number(0), "deployed network, a batch of the training's size"),
)


@tables_of_pair(20)
def cost(pair: Pair) -> Table:
    """What training cost, without the teacher's training, with it, and with a share of it."""
    return _table(f"{pair.name}-cost", f"{pair.full_title}: training cost", pair.methods, _columns(pair))


@tables_of_pair(30)
def cost_elsewhere(pair: Pair) -> list[Table]:
    """The same on every other hardware: timings are never pooled."""
    return [
        _table(f"{pair.name}-cost-{index + 2}", f"{pair.full_title}: training cost, elsewhere", methods, _columns(pair))
        for index, methods in enumerate(pair.elsewhere)
    ]


@tables_of_pair(40)
def resources(pair: Pair) -> Table:
    """Memory, energy and the deployed network."""
    title = f"{pair.full_title}: memory, energy and what is deployed"
    return _table(f"{pair.name}-resources", title, pair.methods, RESOURCES)


def _columns(pair: Pair) -> tuple[Column, ...]:
    kd = pair.baseline(Baseline.KD)
    name = kd["label"] if kd else "kd"
    interval = "without the teacher's training; 95 % interval"
    total = "of the training: matrix products and convolutions, a multiply-add counted as two"
    share = f"with the teacher's training divided by {SHARED_BY} students; a copy of itself is not shared"
    flops = pair.methods["cost_unit"].iloc[0] == "FLOPs"
    over = "FLOPs ÷" if flops else "÷"
    search = "third price, and what the other values cost that the grid's search tried, on one student's bill"
    searched = bool((pair.methods["tuned"] != "").any())
    return (
        Column("label", "Method"),
        Column("step_ms", "Step, ms", number(1), "median of the exclusive probe"),
        Column("train_s", "Training", seconds, "steps × step, the teacher's training not counted"),
        Column("ratio", f"{over} none", times, interval, low_high=("ratio_low", "ratio_high")),
        Column("cost_word", "Costs", text, "than none: more or less where the interval leaves out 1"),
        Column("ratio_kd", f"{over} {name}", times, f"likewise, against {name}", low_high=("ratio_kd_low", "ratio_kd_high")),
        Column("with_teacher_s", "With the teacher", seconds, "with all of the teacher's training"),
        Column("with_teacher_ratio", f"with the teacher {over} none", times, "with all of the teacher's training"),
        Column("with_teacher_ratio_kd", f"with the teachers {over} {name}", times, "both with all of their teachers' training"),
        Column("shared_teacher_s", f"Shared by {SHARED_BY}", seconds, share),
        Column("shared_teacher_ratio", f"shared by {SHARED_BY} {over} none", times, share),
        *(
            [
                Column("with_search_s", "With the search", seconds, search),
                Column("with_search_ratio", f"with the search {over} none", times, search),
                Column("tuned", "Values found", text, "by a search of this grid, or by one of others, whose cost is not known"),
            ]
            if searched
            else []
        ),
        Column("flops", "FLOPs", count, total),
        Column("with_teacher_flops", "FLOPs with the teacher", count),
    )


def _table(name: str, title: str, part: pd.DataFrame, columns: tuple[Column, ...]) -> Table:
    """Cheapest first, on one hardware; columns without any value are left out."""
    shown = tuple(column for column in columns if part[column.key].notna().any())
    part = part.sort_values(["with_teacher_s", "with_teacher_flops"])
    note = f"Timed on {part['where'].iloc[0]}." if part["train_s"].notna().any() else "Not timed."
    if any(column.key == "ratio" for column in shown):
        if part["ratio_low"].notna().any():
            note += " Ratios: median over the probe's turns of the ratio within a turn; the teacher's training was timed apart."
        if (part["cost_word"] == CostWord.APART).any():
            note += " Where costs were not timed in turn, it is the ratio of two medians, without an interval."
    if (part["cost_unit"] == "FLOPs").any():
        note += " FLOPs count matrix products and convolutions alone, not all that takes time."
    if part["energy_kj"].isna().all():
        note += " Energy: not measured."
    return Table(name, title, shown, part, note)
