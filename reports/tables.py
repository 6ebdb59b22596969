"""The tidy frame to tables, and tables to Markdown, CSV, LaTeX and rows of text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from bench import stats
from bench.records.record import Cost, Timing
from bench.records.store import Store
from reports.frame import PAIR_COLUMNS, Curve, by_pair, place
from reports.published import COLUMNS as PUBLISHED_COLUMNS

PUBLISHED_IMAGES = {"cifar100": 50_000, "imagenet": 1_281_167}  # that the published numbers were trained on
NOTHING = "–"


# How values are written


def number(digits: int) -> Callable[[Any], str]:
    return lambda value: NOTHING if _missing(value) else f"{value:,.{digits}f}".replace("-", "−")


def points(value: Any) -> str:
    return NOTHING if _missing(value) else f"{value:+.2f}".replace("-", "−")


def p_value(value: Any) -> str:
    return NOTHING if _missing(value) else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"


def seconds(value: Any) -> str:
    """'24 s', '12.0 min', '3.5 h', '2.1 d': the largest unit of which there are two."""
    if _missing(value):
        return NOTHING
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.{2 if value < 2 else 1 if value < 10 else 0}f} s"


def count(value: Any) -> str:
    """'278 324' up to a million, then '1.2 M', 'G', 'T', 'P', 'E'."""
    if _missing(value):
        return NOTHING
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {unit}"
    return f"{value:,.0f}"


def times(value: Any) -> str:
    return NOTHING if _missing(value) else f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def students(value: Any) -> str:
    return NOTHING if _missing(value) else "never" if math.isinf(value) else f"{value:,.0f}"


def text(value: Any) -> str:
    return NOTHING if _missing(value) or value == "" else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


@dataclass(frozen=True)
class Column:
    key: str  # in the frame, and the heading of the CSV
    title: str
    write: Callable[[Any], str] = text
    help: str = ""
    plus_minus: str = ""  # column of the half interval to write behind the value
    low_high: tuple[str, str] | None = None  # columns of the interval to write behind the value

    def cell(self, row: Mapping[str, Any]) -> str:
        value = self.write(row[self.key])
        if self.plus_minus and not _missing(row[self.plus_minus]):
            value += f" ± {row[self.plus_minus]:.2f}"
        if self.low_high and not _missing(row[self.low_high[0]]):
            value += " [{}, {}]".format(*(self.write(row[key]) for key in self.low_high))
        return value

    @property
    def numeric(self) -> bool:
        return self.write is not text


@dataclass(frozen=True)
class Table:
    """A frame and how to show it. CSV holds the frame itself, unrounded; the other formats the columns."""

    name: str  # of its files
    title: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame
    note: str = ""

    def __bool__(self) -> bool:
        return len(self.frame) > 0

    def rows(self) -> list[list[str]]:
        return [[shown for shown, _ in row] for row in self.sortable]

    @cached_property
    def sortable(self) -> list[list[tuple[str, str]]]:
        """Each cell as shown, and the text that it is sorted by."""
        keys = {key for c in self.columns for key in (c.key, c.plus_minus, *(c.low_high or ())) if key}
        columns = [self.frame[key].tolist() for key in keys] if len(self.frame) else []
        records = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
        return [[(c.cell(row), "" if _missing(row[c.key]) else str(row[c.key])) for c in self.columns] for row in records]

    def csv(self) -> str:
        return self.frame.to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        note = ["", markdown_text(self.note)] if self.note else []
        return "\n".join([f"### {markdown_text(self.title)}", "", *self.markdown_lines(), *note, ""])

    def markdown_lines(self) -> list[str]:
        """The table alone."""
        head = [column.title for column in self.columns]
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in [head, *self.rows()]]
        return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]

    def latex(self) -> str:
        """A booktabs table, ready for a paper."""
        align = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in [[c.title for c in self.columns], *self.rows()]]
        body = ["  \\toprule", "  " + lines[0], "  \\midrule", *("  " + line for line in lines[1:]), "  \\bottomrule"]
        caption = _latex(self.title + (". " + self.note if self.note else ""))
        label = re.sub(r"[^a-z0-9]+", "-", self.name.lower())
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                f"  \\caption{{{caption}}}\\label{{tab:{label}}}",
                f"  \\begin{{tabular}}{{{align}}}",
                *("  " + line for line in body),
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def markdown_text(value: str) -> str:
    """Any text as one line of Markdown that shows it and does nothing else."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(value.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
}
_LATEX |= {"→": r"$\rightarrow$", "–": "--", "<": r"$<$", ">": r"$>$"} | {char: "\\" + char for char in "&%$#_{}"}


def _latex(value: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(value.split()))


# What the tables hold


def summary(frame: pd.DataFrame, costs: Iterable[Cost] = ()) -> pd.DataFrame:
    """Every method of every pair in one line, best first within its pair; what all other tables are made of.

    Columns beside the pair's: method, needs, n, top1 and half (mean and half its 95 % interval), best_top1, flattery,
    chosen_top1; gain, low, high, p_holm, verdict, detectable, unpaired against `none` and, suffixed `_kd`, against `kd`;
    train_s, whole_s, amortised_s, teacher_s and the same in FLOPs; ratio, whole_ratio, amortised_ratio (to what `none` costs:
    seconds where timed, else FLOPs), ratio_low, ratio_high, cost_verdict (see `relative`) and, suffixed `_kd`, the first and
    the last three against `kd`; teachers (how many trainings of the teacher were used).

    Args:
        costs: of the probe; without them ratios of seconds have no interval.
    """
    rows = by_pair(frame)
    rows = rows.assign(whole_flops=rows["flops"] + rows["teacher_flops"])
    rows["amortised_flops"] = rows["flops"] + rows["teacher_flops"] / rows["users"].clip(lower=1)
    means = rows.groupby([*PAIR_COLUMNS, "pair", "method"], sort=False)
    table = means[_MEANS].mean()
    table.insert(0, "needs", means["needs"].first())
    table.insert(1, "n", means["seed"].nunique())
    table.insert(3, "half", means["top1"].agg(stats.half_interval))
    table["teachers"] = means["teacher_id"].nunique()
    for name in ("where", "cost_key"):
        table[name] = means[name].first()
    table = table.reset_index()
    against = [part.assign(**dict(zip(PAIR_COLUMNS, key, strict=True))) for key, part in all_gains(rows)]
    columns = ["n", "unpaired", "gain", "low", "high", "p", "p_holm", "verdict", "detectable", "boot_low", "boot_high"]
    gains = pd.concat(against) if against else pd.DataFrame(columns=[*PAIR_COLUMNS, *stats.GAIN_COLUMNS])
    for base, suffix in (("none", ""), ("kd", "_kd")):
        part = gains[gains["baseline"] == base][[*PAIR_COLUMNS, "method", *columns]]
        part = part.rename(columns={"n": "n_paired"} | {name: name + suffix for name in columns if name != "n"})
        table = table.merge(part.rename(columns={"n_paired": "n_paired" + suffix}), on=[*PAIR_COLUMNS, "method"], how="left")
    table = _with_ratios(table, {(place(cost), cost.key): cost for cost in costs})
    return table.sort_values([*PAIR_COLUMNS, "top1"], ascending=[True, True, True, False], ignore_index=True)


_MEANS = [
    *("top1", "top5", "best_top1", "flattery", "chosen_top1", "train_s", "train_s_low", "train_s_high", "teacher_s", "whole_s"),
    *(
        "amortised_s",
        "flops",
        "teacher_flops",
        "whole_flops",
        "amortised_flops",
        "step_ms",
        "peak_mib",
        "energy_kj",
        "train_only",
    ),
    *("host_peak_mib", "parameters", "latency_ms", "images_per_s", "steps", "prepare_steps", "epochs"),
]


def _with_ratios(table: pd.DataFrame, costs: Mapping[tuple[str, str], Cost]) -> pd.DataFrame:
    """Every method's training cost relative to that of `none` and of `kd` in its pair."""
    unit = "flops" if table["train_s"].isna().all() else "s"
    own, whole, amortised = ("flops" if unit == "flops" else "train_s", f"whole_{unit}", f"amortised_{unit}")
    table = table.copy()
    index = pd.MultiIndex.from_frame(table[PAIR_COLUMNS])
    rows = table[["where", "cost_key", "steps", "prepare_steps", own]].to_dict("records")
    for base, suffix in (("none", ""), ("kd", "_kd")):
        bases = {key: row for key, row, method in zip(index, rows, table["method"], strict=True) if method == base}
        found = []
        for key, row in zip(index, rows, strict=True):
            other = bases.get(key)
            if other is None or other is row:
                found.append(UNKNOWN._replace(value=1.0) if other is row else UNKNOWN)
            elif unit == "flops":
                found.append(UNKNOWN._replace(value=row[own] / other[own]))
            else:
                ours, theirs = (_training_turns(each, costs.get((each["where"], each["cost_key"]))) for each in (row, other))
                found.append(relative(ours, theirs, row[own] / other[own]))
        names = [f"ratio{suffix}", f"ratio{suffix}_low", f"ratio{suffix}_high", f"cost_verdict{suffix}"]
        table[names] = pd.DataFrame(found, columns=names, index=table.index)
    plain = table[table["method"] == "none"].set_index(PAIR_COLUMNS)[own].reindex(index).to_numpy()
    table["whole_ratio"] = table["ratio"] + (table[whole] - table[own]) / plain
    table["amortised_ratio"] = table["ratio"] + (table[amortised] - table[own]) / plain
    return table


class Turns(NamedTuple):
    """What one method cost in every turn of a session of the probe."""

    session: str
    values: np.ndarray

    @classmethod
    def of(cls, cost: Cost, timing: Timing) -> Turns:
        return cls(cost.session, np.array(timing.turns_ms))


class Ratio(NamedTuple):
    """Of two costs, with a 95 % interval, and what may be said of it."""

    value: float
    low: float
    high: float
    verdict: str  # more, less, no difference shown, or not timed in turn; empty where there is nothing to judge


UNKNOWN = Ratio(math.nan, math.nan, math.nan, "")


def relative(ours: Turns | None, theirs: Turns | None, otherwise: float = math.nan) -> Ratio:
    """The ratio of two costs within a turn: median over the turns and its interval.

    What was not timed in turn has `otherwise` instead, the ratio of the medians, which a drift of the machine may have moved.
    """
    if ours is None or theirs is None or ours.session != theirs.session or len(ours.values) != len(theirs.values):
        return Ratio(otherwise, math.nan, math.nan, "" if math.isnan(otherwise) else "not timed in turn")
    value, low, high = stats.median_interval(ours.values / theirs.values)
    verdict = "more" if low > 1 else "less" if high < 1 else "no difference shown"
    return Ratio(value, low, high, verdict)


def _training_turns(row: Mapping[str, Any], cost: Cost | None) -> Turns | None:
    """A whole training, as if every step took as long as in one turn."""
    if cost is None:
        return None
    ms = row["steps"] * np.array(cost.step.turns_ms)
    if row["prepare_steps"] and cost.prepare_step:
        ms = ms + row["prepare_steps"] * np.array(cost.prepare_step.turns_ms)
    return Turns(cost.session, ms)


def all_gains(rows: pd.DataFrame) -> list[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Gains of every pair from `by_pair` rows; each pair's table is one family of comparisons."""
    return [(key, stats.gains(stats.wide(part))) for key, part in rows.groupby(PAIR_COLUMNS, sort=False)]  # type: ignore[misc]


SUMMARY = (
    Column("setting", "Setting"),
    Column("pair", "Pair"),
    Column("method", "Method"),
    Column("n", "n", number(0)),
    Column("top1", "Top-1 %", number(2), plus_minus="half"),
    Column("gain", "Gain", points),
    Column("p_holm", "p", p_value),
    Column("verdict", "Verdict"),
    Column("train_s", "Training", seconds),
    Column("whole_s", "+ teacher", seconds),
    Column("ratio", "÷ none", times, low_high=("ratio_low", "ratio_high")),
    Column("cost_verdict", "Costs"),
    Column("whole_ratio", "+ teacher", times),
)


SIGNS = {"better": "▲", "worse": "▼", "no difference shown": "○", "not tested": "?", "not timed in turn": "~"}
TERMINAL = tuple(
    replace(column, title="", write=lambda verdict: SIGNS.get(verdict, ""))
    if column.key.endswith("verdict")
    else replace(column, low_high=None)
    for column in SUMMARY[2:-1]  # what fits in 80 columns
)


def terminal(summary_of: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text for the terminal, from `summary`."""
    table = Table("summary", "Summary", TERMINAL, summary_of)
    return [column.title for column in TERMINAL], table.rows()


def print_summary(store: Store, grid: str, console: Console) -> None:
    """Print the summary that the last report of a grid left behind, one table a pair."""
    try:
        content = pd.read_csv(store.report_folder(grid) / "tables" / "summary.csv", keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        console.print("No student has been trained yet.")
        return
    for (setting, pair), part in content.groupby(["setting", "pair"], sort=False):
        heads, rows = terminal(part)
        table = rich.table.Table(title=Text(f"{pair}, {setting}"), title_justify="left", box=rich.box.SIMPLE_HEAD)
        table.padding = (0, 1, 0, 0)
        table.caption = "Gain over none, p after Holm: ▲ better, ▼ worse, ○ no difference shown; of costs as well."
        if (part["cost_verdict"] == "not timed in turn").any():
            table.caption += " ~ not timed in turn."
        table.caption_justify = "left"
        for column, head in zip(TERMINAL, heads, strict=True):
            table.add_column(
                Text(head), justify="right" if column.numeric else "left", no_wrap=column.key != "method", overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text(value) for value in row))
        console.print(table)


def accuracy(part: pd.DataFrame, name: str, title: str) -> Table:
    """Accuracies and gains of one pair."""
    last = Column(
        "top1", "Top-1 %, last epoch", number(2), "mean ± half its 95 % t-interval; nothing was chosen", plus_minus="half"
    )
    columns = [Column("method", "Method"), Column("n", "n", number(0), "seeds"), last]
    if "none" in set(part["method"]):
        columns += [
            Column("gain", "Gain over none", points, "points, paired by seed, 95 % t-interval", low_high=("low", "high")),
            Column("p_holm", "p", p_value, "paired t, Holm-corrected over this table"),
            Column("verdict", "Verdict", text, "at 5 % family-wise"),
            Column("detectable", "Detectable", number(2), "true gain that this design would have found with 80 % probability"),
        ]
    if "kd" in set(part["method"]):
        columns += [
            Column("gain_kd", "Gain over kd", points, "likewise, against kd", low_high=("low_kd", "high_kd")),
            Column("p_holm_kd", "p", p_value, "likewise"),
        ]
    if part["boot_low"].notna().any():
        columns.append(
            Column("boot_low", "Bootstrap, over none", points, "95 % percentile interval", low_high=("boot_low", "boot_high"))
        )
    columns.append(Column("flattery", "Best epoch adds", points, "points gained by choosing the epoch on the test set"))
    if part["chosen_top1"].notna().any():
        columns.append(
            Column("chosen_top1", "Epoch by validation", number(2), "test accuracy at the epoch chosen on held-out images")
        )
    uneven = part[(part["unpaired"].fillna(0) > 0) | (part["unpaired_kd"].fillna(0) > 0)]["method"]
    note = (
        f"Seeds differ: {', '.join(uneven)} and the baseline were paired by the seeds that both have. " if len(uneven) else ""
    )
    return Table(name, title, tuple(columns), part, note.strip())


COST = (
    Column("method", "Method"),
    Column("step_ms", "Step, ms", number(1), "median of the exclusive probe"),
    Column("train_s", "Training", seconds, "steps × step, the teacher's training not counted"),
    Column("ratio", "÷ none", times, "without the teacher's training; 95 % interval", low_high=("ratio_low", "ratio_high")),
    Column("cost_verdict", "Costs", text, "than none: more or less where the interval leaves out 1"),
    Column("ratio_kd", "÷ kd", times, "likewise, against kd", low_high=("ratio_kd_low", "ratio_kd_high")),
    Column("whole_s", "Teacher whole", seconds, "with the teacher's whole training"),
    Column("whole_ratio", "÷ none", times, "with the teacher's whole training"),
    Column("amortised_s", "Teacher shared", seconds, "with the teacher's training divided by the students that used it"),
    Column("amortised_ratio", "÷ none", times, "with the teacher's training shared"),
    Column("flops", "FLOPs", count, "of the training: matrix products and convolutions, a multiply-add counted as two"),
    Column("whole_flops", "FLOPs, teacher whole", count),
)
RESOURCES = (
    Column("method", "Method"),
    Column("peak_mib", "Peak device memory, MiB", number(0), "tensors alive together during a training step"),
    Column(
        "host_peak_mib", "Peak host memory, MiB", number(0), "of the probing process: program, data, all methods timed together"
    ),
    Column("energy_kj", "Energy, kJ", number(1), "of the training, the teacher's own not counted"),
    Column("train_only", "Train-only parameters", count, "trained beside the student and dropped"),
    Column("parameters", "Deployed parameters", count),
    Column("latency_ms", "Latency, ms", number(2), "deployed network, one image"),
    Column("images_per_s", "Images/s", number(0), "deployed network, a batch of the training's size"),
)


def cost(part: pd.DataFrame, name: str, title: str, columns: tuple[Column, ...] = COST) -> Table:
    """The bill of one pair on one hardware, cheapest first; columns without any value are left out."""
    shown = tuple(column for column in columns if (part[column.key].notna() & (part[column.key] != "")).any())
    part = part.sort_values(["whole_s", "whole_flops"])
    note = f"Timed on {part['where'].iloc[0]}." if part["train_s"].notna().any() else "Not timed."
    if any(column.key == "ratio" for column in shown):
        if part["ratio_low"].notna().any():
            note += " Ratios: median over the probe's turns of the ratio within a turn; the teacher's training was timed apart."
        if (part["cost_verdict"] == "not timed in turn").any():
            note += " Where costs were not timed in turn, it is the ratio of two medians, without an interval."
    if part["energy_kj"].isna().all():
        note += " Energy: not measured."
    return Table(name, title, shown, part, note)


def step_parts(costs: Mapping[str, Cost], name: str, title: str) -> Table:
    """Each method's training step, whole and by part, with quartiles; relative to `none`'s, and the teacher's share relative to
    its forward pass timed alone. `costs`: by method.
    """
    rows = []
    plain = costs.get("none")
    for method, cost in costs.items():
        timings = {"step": cost.step, **cost.parts}
        timings |= {"preparation": cost.prepare_step} if cost.prepare_step else {}
        row: dict[str, Any] = {"method": method, "turns": len(cost.step.turns_ms)}
        for part, timing in timings.items():
            row |= {f"{part}_ms": timing.median_ms, f"{part}_low_ms": timing.low_ms, f"{part}_high_ms": timing.high_ms}
        step = teacher = UNKNOWN
        if plain and plain is not cost:
            step = relative(Turns.of(cost, cost.step), Turns.of(plain, plain.step), cost.step.median_ms / plain.step.median_ms)
        if alone := cost.teacher_alone:
            row["alone_ms"] = alone.median_ms
            teacher = relative(Turns.of(cost, cost.parts["teacher"]), Turns.of(cost, alone))
        for ratio, prefix in ((step, "ratio"), (teacher, "alone")):
            row |= {prefix: ratio.value, f"{prefix}_low": ratio.low, f"{prefix}_high": ratio.high}
        rows.append(row)
    found = {key.removesuffix("_low_ms"): None for row in rows for key in row if key.endswith("_low_ms")}  # in order, once
    columns = [
        Column(f"{part}_ms", f"{part.capitalize()}, ms", number(2), low_high=(f"{part}_low_ms", f"{part}_high_ms"))
        for part in found
    ]
    step_ratio = Column("ratio", "Step ÷ none", times, "95 % interval", low_high=("ratio_low", "ratio_high"))
    columns = [Column("method", "Method"), *columns[:1], step_ratio, *columns[1:]]
    if any("alone_ms" in row for row in rows):
        columns += [
            Column("alone_ms", "Teacher alone, ms", number(2), "its forward pass, with nothing around it"),
            Column("alone", "Teacher ÷ alone", times, "95 % interval", low_high=("alone_low", "alone_high")),
        ]
    columns.append(Column("turns", "Turns", number(0)))
    frame = pd.DataFrame(rows).sort_values("step_ms", ignore_index=True) if rows else pd.DataFrame()
    note = "Median and quartiles over the turns; of ratios within a turn the median and its 95 % interval. "
    note += "The parts are measured apart and need not add up to the whole step."
    return Table(name, title, tuple(columns), frame, note)


def break_even(part: pd.DataFrame, name: str, title: str) -> Table:
    """How many students must share a teacher before it pays, for each method with one against each without."""
    rows = []
    methods = part[["method", "needs", "train_s", "teacher_s", "gain", "verdict"]].to_dict("records")
    for taught in (method for method in methods if method["needs"] == "teacher"):
        for free in (method for method in methods if method["needs"] != "teacher" and method["method"] != "none"):
            shared = stats.break_even(taught["train_s"], taught["gain"], taught["teacher_s"], free["train_s"], free["gain"])
            shown = taught["verdict"] == "better" and free["verdict"] == "better"
            rows.append({"method": taught["method"], "rival": free["method"], "students": shared, "both_shown": shown})
    columns = (
        Column("method", "With a teacher"),
        Column("rival", "Without"),
        Column("students", "Students that must share", students),
        Column("basis", "Basis"),
    )
    frame = pd.DataFrame(rows, columns=["method", "rival", "students", "both_shown"])
    frame["basis"] = np.where(frame["both_shown"].astype(bool), "both gains shown", "gain not shown: a guess")
    frame = frame[frame["students"].notna()].sort_values(["both_shown", "students"], ascending=[False, True])
    note = "Smallest number of students sharing one teacher at which training seconds per point gained fall below the rival's."
    return Table(name, title, columns, frame, note)


def targets(part: pd.DataFrame) -> list[float]:
    """Accuracies to ask the time for: 90, 95 and 100 % of what the plain student reaches, and what the best method does."""
    plain = part.loc[part["method"] == "none", "top1"]
    anchor = float(plain.iloc[0] if len(plain) else part["top1"].min())
    wanted = [0.9 * anchor, 0.95 * anchor, anchor, float(part["top1"].max())]
    return sorted({math.floor(value * 10) / 10 for value in wanted})


def time_to(rows: pd.DataFrame, curves: Mapping[str, Curve], goals: list[float], name: str, title: str) -> Table:
    """Training cost until an accuracy is first reached on the test set: median over seeds, where more than half got there."""
    rows = rows[rows["id"].isin(curves.keys())]
    unit = "train_s" if rows["train_s"].notna().any() else "flops"
    found = []
    for row in rows[["id", "method", "prepare_s", "prepare_flops", unit]].to_dict("records"):
        top1 = curves[row["id"]].top1
        prepared, per_epoch = _spent(row, unit, len(top1))
        reached = [(top1 >= goal - 1e-9) for goal in goals]
        costs = [prepared + per_epoch * (int(hit.argmax()) + 1) if hit.any() else math.inf for hit in reached]
        found.append([row["method"], *costs])
    labels = [f"{goal:.1f}" for goal in goals]
    frame = pd.DataFrame(found, columns=["method", *labels]).groupby("method").median().replace(math.inf, math.nan)
    frame = frame.sort_values(labels, na_position="last").reset_index()
    write = seconds if unit == "train_s" else count
    columns = (Column("method", "Method"), *(Column(label, f"to {label} %", write) for label in labels))
    kind = "Training seconds" if unit == "train_s" else "Training FLOPs"
    return Table(name, title, columns, frame, f"{kind} without the teacher's; – where half of the seeds or fewer got there.")


def equal_cost(rows: pd.DataFrame, curves: Mapping[str, Curve], name: str, title: str) -> Table:
    """Each method's accuracy at the moment when it has cost what the plain student's whole training costs."""
    rows = rows[rows["id"].isin(curves.keys())]
    unit = "train_s" if rows["train_s"].notna().any() else "flops"
    teacher = "teacher_s" if unit == "train_s" else "teacher_flops"
    budget = rows.loc[rows["method"] == "none", unit].mean()
    found = []
    for row in rows[["id", "method", "prepare_s", "prepare_flops", "users", unit, teacher]].to_dict("records"):
        top1 = curves[row["id"]].top1
        prepared, per_epoch = _spent(row, unit, len(top1))
        values = []
        for bill in (0.0, row[teacher] / max(row["users"], 1), row[teacher]):
            left = (budget - bill - prepared) / per_epoch
            epoch = 0 if math.isnan(left) else min(int(left + 1e-9), len(top1))
            values.append(top1[epoch - 1] if epoch > 0 else math.nan)
        found.append([row["method"], *values])
    keys = ["without", "shared", "whole"]
    frame = pd.DataFrame(found, columns=["method", *keys]).groupby("method").mean()
    frame = frame.sort_values("without", ascending=False).reset_index() if not math.isnan(budget) else frame[:0].reset_index()
    titles = ("teacher free of charge", "teacher shared", "teacher whole")
    columns = (Column("method", "Method"), *(Column(k, t, number(2)) for k, t in zip(keys, titles, strict=True)))
    note = (
        f"Top-1 % when the {'time' if unit == 'train_s' else 'FLOPs'} of none's whole training "
        f"({(seconds if unit == 'train_s' else count)(budget)}) is spent; – where the teacher alone costs more. "
        "A schedule cut short has not lowered its learning rate yet, so this is a lower bound."
    )
    return Table(name, title, columns, frame, note)


def _spent(row: dict[str, Any], unit: str, epochs: int) -> tuple[float, float]:
    """Cost of the preparation, and of one epoch after it."""
    prepared = row["prepare_s" if unit == "train_s" else "prepare_flops"]
    return prepared, (row[unit] - prepared) / epochs


def teachers(frame: pd.DataFrame) -> Table:
    """The cells that others learned from."""
    rows = frame[frame["id"].isin(set(frame["teacher_id"]))].copy()
    rows["users"] = rows["id"].map(frame["teacher_id"].value_counts())
    columns = (
        Column("student", "Teacher"),
        Column("setting", "Setting"),
        Column("seed", "Seed", number(0)),
        Column("top1", "Top-1 %", number(2)),
        Column("train_s", "Training", seconds),
        Column("flops", "FLOPs", count),
        Column("users", "Students", number(0), "cells that learned from it: methods × seeds"),
    )
    return Table("teachers", "Teachers", columns, rows.sort_values(["setting", "student", "seed"]))


def family(method: str) -> str:
    """'tfd+kd' of 'tfd(ramp_epochs=1)+kd': the method without its arguments and presets, as published tables name it."""
    before = None
    while before != method:
        before, method = method, re.sub(r" ?\([^()]*\)|\[[^\]]*\]", "", method)
    return method


def search(frame: pd.DataFrame, curves: Mapping[str, Curve]) -> Table:
    """Where a method ran with several values of a hyper-parameter: what the validation split chooses, and what that cost."""
    rows = by_pair(frame)
    rows["family"] = rows["method"].map(family)
    rows = rows[rows.groupby([*PAIR_COLUMNS, "family"])["method"].transform("nunique") > 1].copy()
    rows["validation"] = [
        float(np.nanmax(c.validation)) if (c := curves.get(i)) and np.isfinite(c.validation).any() else math.nan
        for i in rows["id"]
    ]
    found = []
    for key, part in rows.groupby([*PAIR_COLUMNS, "pair", "family"], sort=False):
        by_variant = part.groupby("method")[["validation", "top1", "chosen_top1", "train_s", "flops"]].mean()
        spent = part.groupby("method")[["train_s", "flops"]].sum(min_count=1).sum(min_count=1)
        if len(by_variant) < 2 or by_variant["validation"].isna().any():
            continue
        best = by_variant.sort_values("validation", ascending=False).iloc[0]
        found.append(
            {"setting": key[0], "pair": key[3], "method": key[4], "variants": len(by_variant), "chosen": best.name}
            | best[["validation", "chosen_top1", "top1"]].to_dict()
            | {"search_s": spent["train_s"], "search_flops": spent["flops"]}
        )
    columns = (
        Column("pair", "Pair"),
        Column("method", "Method"),
        Column("variants", "Tried", number(0)),
        Column("chosen", "Chosen on validation"),
        Column("validation", "Validation %", number(2)),
        Column("chosen_top1", "Test %, that epoch", number(2)),
        Column("top1", "Test %, last epoch", number(2)),
        Column("search_s", "Whole search", seconds, "training of all values and seeds"),
        Column("search_flops", "FLOPs", count),
    )
    keys = ["setting", *(column.key for column in columns)]
    return Table("search", "Hyper-parameters chosen on the validation split", columns, pd.DataFrame(found, columns=keys))


def published(frame: pd.DataFrame, numbers: pd.DataFrame) -> Table:
    """Published numbers beside ours, chosen by the same rule and by our own (last epoch, mean of all seeds).

    A number that was published for a method with a technique, "tfd (cutout)", meets trainings whose recipe has it.
    """
    taught = frame["teacher"].where(frame["needs"] == "teacher", "")
    groups: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    method = frame["method"].str.replace(r"\[[^\]]*\]", "", regex=True)  # presets are published values
    method += (" (" + frame["techniques"] + ")").where(frame["techniques"] != "", "")
    for (_, *key), part in frame.groupby(["setting", "data", "student", taught, method, "method"], sort=False):
        groups.setdefault(tuple(key[:-1]), []).append(part)
    bases = numbers[numbers["method"] == "none"].drop_duplicates(["table", "student"]).set_index(["table", "student"])["top1"]
    found = []
    copied = ["data", "student", "teacher", "method", "top1", "rule", "select"]
    for row in numbers.drop_duplicates(copied).to_dict("records"):  # many tables copy numbers from others
        how = f"best of {row['runs']:.0f}" if row["select"] == "best_of" else "mean"
        for part in groups.get((row["data"], row["student"], row["teacher"], row["method"]), []):
            values = part["best_top1" if row["rule"] == "best" else "top1"]
            theirs = stats.expected_best(values, int(row["runs"])) if row["select"] == "best_of" else float(values.mean())
            full = PUBLISHED_IMAGES.get(row["data"], -1)
            images = f"{part['train_samples'].max():,} images" if part["train_samples"].max() != full else ""
            differs = ", ".join(filter(None, [part["deviations"].iloc[0] if row["data"] == "cifar100" else "", images]))
            found.append(
                {name: row[name] for name in PUBLISHED_COLUMNS if name != "top1"}
                | {
                    "setting": part["setting"].iloc[0],
                    "pair": f"{row['teacher']} → {row['student']}" if row["teacher"] else row["student"],
                }
                | {
                    "published": row["top1"],
                    "published_gain": row["top1"] - bases.get((row["table"], row["student"]), math.nan),
                }
                | {"ours_their_rule": theirs, "difference": theirs - row["top1"], "ours": float(part["top1"].mean())}
                | {"half": stats.half_interval(part["top1"]), "n": len(part), "differs": differs}
                | {"chosen": f"{row['rule']}, {how}"}
            )
    columns = (
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
        Column(
            "differs",
            "Trained otherwise",
            text,
            "how our training differs from the published protocol, other than in its learning rate",
        ),
    )
    keys = [*PUBLISHED_COLUMNS[:6], "setting", "pair", "published", "published_gain", "rule", "runs", "select", "chosen"]
    keys += ["ours_their_rule", "difference", "ours", "half", "n", "differs", "note"]
    note = "A difference is only about the method where nothing was trained otherwise."
    return Table("published", "Ours beside published", columns, pd.DataFrame(found, columns=keys), note)


def precisions(frame: pd.DataFrame) -> Table | None:
    """What was trained in fp32 and in bf16, paired by seed; None where nothing was."""
    if frame.empty:
        return None
    ends = {precision: f", {precision}" for precision in ("fp32", "bf16")}  # of a setting, where precisions differ
    halves = {
        precision: frame[frame["setting"].str.endswith(end)].assign(setting=frame["setting"].str.removesuffix(end))
        for precision, end in ends.items()
    }
    table = None if any(half.empty for half in halves.values()) else compared(halves, "precisions", "Both precisions")
    return None if table is None or table.frame.empty else table


def compared(sides: dict[str, pd.DataFrame], name: str, title: str) -> Table:
    """Two tidy frames by what they are called: every method of a pair in both, paired by seed; one family of comparisons."""
    (a, ours), (b, other) = sides.items()
    key = [*PAIR_COLUMNS, "pair", "method"]
    both = by_pair(ours).merge(by_pair(other), on=[*key, "seed"], suffixes=("_a", "_b"))
    found = []
    for group, part in both.groupby(key, sort=False):
        change = stats.gains(pd.DataFrame({"none": part["top1_a"].to_numpy(), "b": part["top1_b"].to_numpy()}), ("none",)).iloc[
            0
        ]
        same = part["where_a"].iloc[0] == part["where_b"].iloc[0] != ""
        found.append(
            dict(zip(key, group, strict=True))
            | {"top1_a": part["top1_a"].mean(), "top1_b": part["top1_b"].mean()}
            | change[["n", "gain", "low", "high", "p"]].to_dict()
            | {"p_equivalent": stats.equivalence_p(part["top1_b"] - part["top1_a"])}
            | {"time": (part["train_s_b"] / part["train_s_a"]).mean() if same else math.nan}
        )
    keys = [*key, "top1_a", "top1_b", "n", "gain", "low", "high", "p", "p_equivalent", "time"]
    frame = pd.DataFrame(found, columns=keys)
    frame["p_holm"] = stats.holm(frame["p"].to_numpy(float))
    frame["verdict"] = [stats.verdict(*values) for values in zip(frame["gain"], frame["p_holm"], strict=True)]
    columns = (
        Column("setting", "Setting"),
        Column("pair", "Pair"),
        Column("method", "Method"),
        Column("n", "n", number(0), "seeds in both"),
        Column("top1_a", f"{a}, %", number(2)),
        Column("top1_b", f"{b}, %", number(2)),
        Column("gain", f"{b} − {a}", points, "95 % t-interval, paired by seed", low_high=("low", "high")),
        Column("p_holm", "p", p_value, "Holm-corrected over this table"),
        Column("verdict", f"{b} is"),
        Column("p_equivalent", f"p, within ±{stats.MARGIN}", p_value, "two one-sided t-tests: below .05 both are equivalent"),
        Column("time", f"Time, {b} ÷ {a}", times, "only where both were timed on the same hardware"),
    )
    return Table(name, title, columns, frame)
