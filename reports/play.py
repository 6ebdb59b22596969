"""What the page's script draws and reckons with: every method of every pair, its accuracy, gain and costs."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from reports.figures.style import names_beside
from reports.frame import SHARED_BY
from reports.pair import Pair
from reports.report import Report
from reports.tables.marks import SIGNS

QUANTITIES = {
    "time": ("Training time", "train_s", "teacher_s"),
    "flops": ("FLOPs", "flops", "teacher_flops"),
    "energy": ("Energy", "energy_kj", "teacher_kj"),
    "memory": ("Peak device memory", "peak_mib", ""),
    "host": ("Peak host memory", "host_peak_mib", ""),
}
"""What an axis can show: its name, the column of a training's own cost, and that of its teacher's training, if it adds up."""


def play(report: Report) -> dict[str, Any]:
    """As JSON can hold it; what is not known is None. `quantities` are those that some method has a value of; `over` has a
    method's mean over the pairs of each setting."""
    methods = [_methods(pair, report.frame) for pair in report.pairs]
    pairs = [
        {"title": pair.title, "setting": pair.setting, "methods": own} for pair, own in zip(report.pairs, methods, strict=True)
    ]
    over = [
        {
            row["label"]: {name: _known(row[name]) for name in ("gain", "low", "high", "pairs")}
            | {"claim": row["claim"], "sign": SIGNS.get(row["claim"], "")}
            for row in part.to_dict("records")
        }
        for _, part in (report.style.shown(report.over).groupby("setting", sort=False) if len(pairs) > 1 else ())
    ]
    costs = [method["costs"] for own in methods for method in own]
    known = [key for key in QUANTITIES if any(cost[key][0] is not None for cost in costs)]
    return {
        "quantities": {key: {"name": QUANTITIES[key][0], "teacher": bool(QUANTITIES[key][2])} for key in known},
        "shared_by": SHARED_BY,
        "pairs": pairs,
        "over": over,
    }


def _methods(pair: Pair, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Best first, as the tables have them; a cost is that of the training itself, and that of the teacher's."""
    kj = pair.runs["teacher_id"].map(frame.drop_duplicates("id").set_index("id")["energy_kj"]).astype(float)
    teacher_kj = kj.where(pair.runs["needs"] != "none", 0.0).groupby(pair.runs["method_id"]).mean()
    methods = pair.style.shown(pair.methods)
    rows = methods.assign(teacher_kj=methods["method_id"].map(teacher_kj)).to_dict("records")
    numbers = ("n", "top1", "half", "gain", "low", "high", "n_paired", "ratio", "ratio_low", "ratio_high")
    return [
        {name: _known(row[name]) for name in numbers}
        | {name: row[name] for name in ("label", "needs", "claim")}
        | {"lines": name.split("\n"), "sign": SIGNS.get(row["claim"], ""), "color": pair.style.color(row["label"], "")}
        | {"costs": {key: [_known(row[own]), _known(row[its] if its else 0)] for key, (_, own, its) in QUANTITIES.items()}}
        for row, name in zip(rows, names_beside([row["label"] for row in rows]), strict=True)
    ]


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.7g}")
