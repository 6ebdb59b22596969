"""Published numbers beside ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench import stats
from reports.frame import AT_EQUAL_COST
from reports.published import COLUMNS as PUBLISHED_COLUMNS
from reports.published import read
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, number, points, text

PUBLISHED_IMAGES = {"cifar100": 50_000, "imagenet": 1_281_167}  # that the published numbers were trained on
COLUMNS = (
    Column("source", "Source"),
    Column("table", "Table"),
    Column("pair", "Pair"),
    Column("method", "Method"),
    Column("published", "Published", number(2)),
    Column("chosen", "Its rule", text, "which epoch, and which of the runs"),
    Column("ours_their_rule", "Ours, its rule", number(2), "expected best of as many of our runs, or their mean"),
    Column("difference", "Difference", points, "ours under its rule − published"),
    Column("ours", "Ours, our rule", number(2), "last epoch, mean of all seeds", plus_minus="half"),
    Column("n", "n", number(0)),
    Column("differs", "Trained otherwise", text, "how our training differs from the published protocol, learning rate aside"),
)
NOTE = "A difference is only about the method where nothing was trained otherwise."


@tables_of_report(40, section="published")
def published(report: Report) -> Table | None:
    """Published numbers beside ours, chosen by the same rule and by our own (last epoch, mean of all seeds)."""
    return beside_published(report.shown_frame, read()) if report.pairs else None


def beside_published(frame: pd.DataFrame, numbers: pd.DataFrame) -> Table:
    """The table for any tidy frame and any published numbers, as `reports.published.read` gives them.

    A number that was published for a method with a technique, "tfd (cutout)", meets trainings whose recipe has it.
    """
    groups = by_published_name(frame)
    plain = numbers[numbers["method"] == "none"].drop_duplicates(["table", "student"])
    bases = {(row["table"], row["student"]): row for row in plain.to_dict("records")}
    found = []
    copied = ["data", "student", "teacher", "method", "top1", "rule", "select"]
    for row in numbers.drop_duplicates(copied).to_dict("records"):  # many tables copy numbers from others
        base = bases.get((row["table"], row["student"]))
        gain = row["top1"] - base["top1"] if base is not None and same_rule(row, base) else math.nan
        for part in groups.get((row["data"], row["student"], row["teacher"], row["method"]), []):
            found.append({name: row[name] for name in PUBLISHED_COLUMNS if name != "top1"} | _ours(row, gain, part))
    keys = [*PUBLISHED_COLUMNS[:6], "setting", "pair", "published", "published_gain", "rule", "runs", "select", "chosen"]
    keys += ["ours_their_rule", "difference", "ours", "half", "n", "differs", "note"]
    return Table("published", "Ours beside published", COLUMNS, pd.DataFrame(found, columns=keys), NOTE)


def same_rule(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two published numbers were chosen alike: by epoch and among runs. Else their difference is no gain."""
    names = ("rule", "select", "runs") if ours["select"] == "best_of" else ("rule", "select")
    return all(ours[name] == theirs[name] for name in names)


def by_published_name(frame: pd.DataFrame) -> dict[tuple[str, ...], list[pd.DataFrame]]:
    """Runs of methods at published values by (data, student, teacher, method as published tables name it)."""
    frame = frame[frame["as_published"].astype(bool) & (frame["role"] != AT_EQUAL_COST)]
    teacher = frame["teacher"].where(frame["needs"] == "teacher", "")
    method = _published_names(frame) + (" (" + frame["techniques"] + ")").where(frame["techniques"] != "", "")
    groups: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for (_, *key), part in frame.groupby(["setting", "data", "student", teacher, method, "method_id"], sort=False):
        groups.setdefault(tuple(key[:-1]), []).append(part)
    return groups


def _published_names(frame: pd.DataFrame) -> pd.Series:
    """The family, and within it what it wraps: "kd", "tfd+kd", "logit_std(dkd)"."""

    def name(family: str, arguments: str) -> str:
        keys = {key.partition(".")[0] for key in json.loads(arguments)} - {family}
        return f"{family}({keys.pop()})" if len(keys) == 1 and "+" not in family else family

    names = [name(*row) for row in zip(frame["family"], frame["arguments"], strict=True)]
    return pd.Series(names, index=frame.index, dtype=object)


def _ours(row: dict, published_gain: float, part: pd.DataFrame) -> dict[str, object]:
    """Our runs of one method beside one published number."""
    how = f"best of {row['runs']:.0f}" if row["select"] == "best_of" else "mean"
    values = part["best_top1" if row["rule"] == "best" else "top1"]
    ours = stats.expected_best(values, int(row["runs"])) if row["select"] == "best_of" else float(values.mean())
    full = PUBLISHED_IMAGES.get(row["data"], -1)
    images = f"{part['train_samples'].max():,} images" if part["train_samples"].max() != full else ""
    differs = ", ".join(filter(None, [part["deviations"].iloc[0] if row["data"] == "cifar100" else "", images]))
    return {
        "setting": part["setting"].iloc[0],
        "pair": f"{row['teacher']} → {row['student']}" if row["teacher"] else row["student"],
        "published": row["top1"],
        "published_gain": published_gain,
        "ours_their_rule": ours,
        "difference": ours - row["top1"],
        "ours": float(part["top1"].mean()),
        "half": stats.half_interval(part["top1"]),
        "n": len(part),
        "differs": differs,
        "chosen": f"{row['rule']}, {how}",
    }
