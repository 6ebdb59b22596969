"""Published claims that a grid covers: whether ours agree, and published costs beside our ratios."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from bench import stats
from bench.records.comparisons import Baseline
from reports.published import read, read_costs
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.published import by_published_name, same_rule
from reports.tables.table import Column, Table, number, points, text, times

CLAIM_COLUMNS = (
    Column("source", "Source"),
    Column("table", "Table"),
    Column("pair", "Pair"),
    Column("method", "Method"),
    Column("claim", "Claim", text, "accuracy in %, or gain over none in points"),
    Column("published", "Published", number(2)),
    Column("chosen", "Its rule", text, "which epoch, and which of the runs"),
    Column("ours", "Ours, its rule", number(2)),
    Column("difference", "Difference", points, "95 % interval, their error included", low_high=("low", "high")),
    Column("n", "n", number(0)),
    Column("word", "Agrees", text, "inside: shown within the margin; outside: shown to differ; else undecided"),
)


@tables_of_report(42, section="published")
def claims(report: Report) -> Table | None:
    """Claims about trainings like ours; what was trained otherwise is left out, since it is another claim."""
    return check(report.shown_frame, read(), report.design.margin) if report.pairs else None


def check(frame: pd.DataFrame, numbers: pd.DataFrame, margin: float) -> Table:
    """The table for any tidy frame and any published numbers.

    Args:
        margin: points within which two numbers count as the same.
    """
    groups = by_published_name(frame[frame["deviations"] == ""])
    plain = numbers[numbers["method"] == "none"].drop_duplicates(["table", "student"])
    bases = {(row["table"], row["student"]): row for row in plain.to_dict("records")}
    found: list[dict[str, Any]] = []
    copied = ["data", "student", "teacher", "method", "top1", "rule", "select"]
    for row in numbers.drop_duplicates(copied).to_dict("records"):
        base = bases.get((row["table"], row["student"]))
        for part in groups.get((row["data"], row["student"], row["teacher"], row["method"]), []):
            found.append(_checked(row, "accuracy", row["top1"], part.set_index("seed")[_top1(row)], margin))
            for none in groups.get((row["data"], row["student"], "", "none"), []):
                same = none["setting"].iloc[0] == part["setting"].iloc[0] and row["method"] != "none"
                if same and base is not None and same_rule(row, base) and row["select"] == "mean":
                    gains = part.set_index("seed")[_top1(row)] - none.set_index("seed")[_top1(row)]
                    found.append(_checked(row, "gain", row["top1"] - base["top1"], gains, margin))
    keys = [*(column.key for column in CLAIM_COLUMNS), "low", "high", "inner_low", "inner_high"]
    here = points(stats.best_minus_last(frame["best_top1"], frame["top1"])[0])
    note = (
        f"Inside: the 90 % interval of the difference lies within ±{margin:g} points. Outside: the 95 % interval leaves out 0. "
        "Not corrected for the number of claims. Numbers of best epochs meet our best epochs. In 54 public trainings of the "
        f"field the best epoch on the test set is {stats.BEST_MINUS_LAST:.2f} points above the last on average "
        f"(median {stats.BEST_MINUS_LAST_MEDIAN:.2f}, at most {stats.BEST_MINUS_LAST_MOST:.2f}); here {here}."
    )
    return Table("claims", "Published claims, checked", CLAIM_COLUMNS, pd.DataFrame(found, columns=keys), note)


def _top1(row: dict[Any, Any]) -> str:
    return "best_top1" if row["rule"] == "best" else "top1"


def _checked(row: dict[Any, Any], claim: str, published: float, values: pd.Series, margin: float) -> dict[str, Any]:
    """One claim; a number of runs that is not stated is taken as one."""
    runs = 1 if math.isnan(row["runs"]) else int(row["runs"])
    found = stats.check_claim(values, published, margin, runs=runs, best=row["select"] == "best_of")
    how = f"best of {runs}" if row["select"] == "best_of" else "mean" + (f" of {runs}" if runs > 1 else "")
    return {name: row[name] for name in ("source", "table", "method")} | {
        "pair": f"{row['teacher']} → {row['student']}" if row["teacher"] else row["student"],
        "claim": claim,
        "published": published,
        "chosen": f"{row['rule']}, {how}",
        "n": int(np.isfinite(values.to_numpy(float)).sum()),
        **found._asdict(),
    }


@tables_of_report(44, section="published")
def costs(report: Report) -> Table | None:
    """What others measured, relative to kd in the same source, beside our ratios to kd."""
    if not report.pairs:
        return None
    known = read_costs()
    kd = known[known["method"] == Baseline.KD].drop_duplicates("source").set_index("source")["cost"]
    shown, found = report.style.shown(report.summary), []
    for row in known[known["method"] != Baseline.KD].to_dict("records"):
        ours = shown[(shown["family"] == row["method"]) & shown["ratio_kd"].notna()]
        for own in ours.to_dict("records"):
            found.append(
                {"source": row["source"], "their_pair": f"{row['teacher']} → {row['student']}, {row['data']}"}
                | {"method": row["method"], "published": row["cost"] / kd[row["source"]], "note": row["note"]}
                | {"pair": own["pair"], "unit": own["cost_unit"]}
                | {name: own[name] for name in ("ratio_kd", "ratio_kd_low", "ratio_kd_high")}
            )
    columns = (
        Column("source", "Source"),
        Column("their_pair", "Its pair"),
        Column("method", "Method"),
        Column("published", "÷ kd there", times),
        Column("pair", "Our pair"),
        Column(
            "ratio_kd",
            "÷ kd here",
            times,
            "without teachers' training; 95 % interval",
            low_high=("ratio_kd_low", "ratio_kd_high"),
        ),
        Column("unit", "of"),
        Column("note", "Note"),
    )
    frame = pd.DataFrame(found, columns=[*(column.key for column in columns), "ratio_kd_low", "ratio_kd_high"])
    note = "Batches, hardware and pairs differ; their numbers come without intervals or repeats."
    return Table("published-costs", "Published costs beside ours", columns, frame, note)
