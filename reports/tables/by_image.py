"""What the test set's own images add to the error of a gain, and where two networks differ image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import stats
from bench.records.comparisons import Baseline
from bench.stats import ALPHA
from reports.bill import SUFFIX
from reports.gains import alike
from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.accuracy import SIMULTANEOUS
from reports.tables.table import Column, Table, number, points

Row = dict[Any, Any]
Answers = dict[int, NDArray[np.bool_]]  # which test images are right, by seed
KEYS = ["label", "against", "n", "gain", "seeds", "images", "low", "high", "only_ours", "only_theirs", "differ", "agreement"]
COLUMNS = (
    Column("label", "Method"),
    Column("against", "Against"),
    Column("n", "n", number(0), "seeds in common whose answers by image were kept"),
    Column(
        "gain",
        "Gain, other seeds and images",
        points,
        f"points, {SIMULTANEOUS}; it is about other seeds and other test images; none for sequential seeds",
        low_high=("low", "high"),
    ),
    Column("seeds", "Error of seeds", number(2), "standard error of the gain over seeds, points"),
    Column("images", "Error seeds leave", number(2), "standard error, points, from these test images; no seed removes it"),
    Column("only_ours", "Only ours right, %", number(2), "of the test images, mean over the seeds"),
    Column("only_theirs", "Only theirs right, %", number(2), "likewise"),
    Column("differ", "Networks that differ", help="of so many seeds: McNemar's test of two networks, p < .05, not corrected"),
)
AGREEMENT = Column(
    "agreement",
    "Agrees with teacher, %",
    number(2),
    "of the test images, both right or both wrong, mean over the seeds; without a teacher of its own: with the pair's teachers",
)


@tables_of_pair(15)
def by_image(pair: Pair) -> Table | None:
    """Gains with the error of seeds and images, disagreement with the baseline, agreement with the teacher."""
    answers = {method_id: _answers(pair, runs) for method_id, runs in pair.runs.groupby("method_id")}
    rows = []
    for method in pair.methods.to_dict("records"):
        compared = [_compared(pair, method, answers, baseline) for baseline in Baseline]
        agreement = _agreement(pair, method)
        first = {"label": method["label"], "agreement": agreement}
        rows += [first | each for each in compared if each] or ([first] if not math.isnan(agreement) else [])
    if not any("gain" in row for row in rows):
        return None
    frame = pd.DataFrame(rows, columns=KEYS)
    columns = (*COLUMNS, AGREEMENT) if frame["agreement"].notna().any() else COLUMNS
    return Table(f"{pair.name}-by-image", f"{pair.full_title}: by test image", columns, frame, left_by_seeds(frame))


def left_by_seeds(frame: pd.DataFrame) -> str:
    """What the images add, in a sentence; empty where there are too few seeds to estimate it."""
    most = frame["images"].max()
    if math.isnan(most):
        return ""
    return f"These test images add a standard error of up to {most:.2f} points to a gain, which no seed removes."


def _answers(pair: Pair, runs: pd.DataFrame) -> Answers:
    some = runs[runs["id"].isin(pair.by_image.keys())]
    return {seed: pair.by_image[cell].correct for seed, cell in zip(some["seed"], some["id"], strict=True)}


def _ran(pair: Pair, method_id: str) -> dict[int, str]:
    runs = pair.runs[pair.runs["method_id"] == method_id]
    return dict(zip(runs["seed"], runs["ran"], strict=True))


def _compared(pair: Pair, method: Row, answers: dict[str, Answers], baseline: Baseline) -> Row | None:
    """A method beside a baseline; only methods without a teacher stand beside kd, as in the verdicts."""
    base = pair.baseline(baseline)
    if (
        base is None
        or method["baseline"] in (baseline, Baseline.NONE)
        or (baseline == Baseline.KD and method["needs"] == "teacher")
    ):
        return None
    ours, theirs = answers[method["method_id"]], answers[base["method_id"]]
    ran = [_ran(pair, row["method_id"]) for row in (method, base)]
    kept, _ = alike(*ran)
    seeds = [seed for seed in sorted(kept) if seed in ours and seed in theirs and ours[seed].shape == theirs[seed].shape]
    if not seeds or len({len(ours[seed]) for seed in seeds}) > 1:
        return None
    a, b = (np.array([side[seed] for seed in seeds]) for side in (ours, theirs))
    suffix = SUFFIX[baseline]
    factor = method["comparisons" + suffix] * int(stats.look_factor(int(method["looks" + suffix])))
    found = stats.two_way(a, b, level=1 - ALPHA / factor)
    sequential = not pd.isna(method["most" + suffix])  # the interval of seeds that stop by a rule is another
    tests = [stats.mcnemar(*both) for both in zip(a, b, strict=True)]
    return {
        "against": base["label"],
        "n": len(seeds),
        **{name: getattr(found, key) for name, key in (("gain", "mean"), ("seeds", "seeds"), ("images", "images"))},
        "low": math.nan if sequential else found.low,
        "high": math.nan if sequential else found.high,
        "only_ours": 100 * float((a & ~b).mean()),
        "only_theirs": 100 * float((b & ~a).mean()),
        "differ": f"{sum(test.p < ALPHA for test in tests)} of {len(tests)}",
    }


def _agreement(pair: Pair, method: Row) -> float:
    """With each run's own teacher, or with the pair's teachers; NaN where no answers of theirs were kept."""
    taught = pair.runs[pair.runs["needs"] == "teacher"]
    teachers = [cell for cell in dict.fromkeys(taught["teacher_id"]) if cell in pair.by_image]
    found = []
    for run in pair.runs[pair.runs["method_id"] == method["method_id"]].to_dict("records"):
        own = [run["teacher_id"]] if run["needs"] == "teacher" else teachers
        found += _agreements(pair, run["id"], own)
    return float(np.mean(found)) if found else math.nan


def _agreements(pair: Pair, cell: str, teachers: Sequence[str]) -> list[float]:
    kept = pair.by_image
    known = [teacher for teacher in teachers if cell in kept and teacher in kept and kept[teacher].images == kept[cell].images]
    return [stats.agreement(kept[cell].correct, kept[teacher].correct) for teacher in known]
