"""What the README shows of finished grids: the figure, the answer in a sentence, ours beside the published, how to repeat it.

`make readme` writes it into the README, where a test compares it with the records again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from bench.records.record import Record
from bench.records.store import Store
from reports import frame as frames
from reports import plots, sweeps, tables, verdicts
from reports.frame import PAIR_COLUMNS
from reports.page import file_name
from reports.plots import Figure
from reports.tables import Column, Table, markdown_text, number, p_value, points, seconds, text, times

RESULT = (
    Column("n", "seeds", number(0)),
    Column("top1", "top-1, %", number(2), plus_minus="half"),
    Column("gain", "gain over none", points, low_high=("low", "high")),
    Column("p_holm", "p", p_value),
)
LEGEND = (
    "± is half the 95 % t-interval of the mean over seeds; in brackets stands the 95 % t-interval of the gain, paired by seed; "
    "p is Holm-corrected over all comparisons of a setting."
)


def answer(store: Store, grid: str, published: pd.DataFrame) -> str:
    """Markdown: accuracy against cost of a grid of one pair, the verdict, and its methods beside published ones.

    Args:
        store, grid: the records. The figure is the one that the grid's report writes.
        published: rows of `reports.published.read` of one pair, a row a method; the pair and its training need not be ours.

    Raises:
        ValueError: the grid has not exactly one pair, nothing was timed, or the published rows are not of one pair.
    """
    _, part = _loaded(store, grid)
    if len(part[PAIR_COLUMNS].drop_duplicates()) != 1 or part["train_s"].isna().any():
        raise ValueError(f"{grid}: one pair, with its costs measured, is what can be summed up")
    theirs = published.set_index("method")
    [student], [teacher] = theirs["student"].unique(), [name for name in theirs["teacher"].unique() if name]
    title = part["pair"].iloc[0]
    rows = part.assign(family=part["method"].map(tables.family))
    for name in ("top1", "rule", "select"):
        rows["published_" + name] = rows["family"].map(theirs[name])
    same_rule = (rows[["published_rule", "published_select"]] == theirs.loc["none", ["rule", "select"]].to_numpy()).all(axis=1)
    gain = rows["published_top1"] - theirs.loc["none", "top1"]
    rows["published_gain"] = gain.where(same_rule & (rows["method"] != "none"))
    rows["how"] = [_how(theirs.loc[family]) if family in theirs.index else "" for family in rows["family"]]
    columns = (
        Column("method", title),
        *RESULT,
        Column("ratio", "training cost ÷ none", times, low_high=("ratio_low", "ratio_high")),
        Column("whole_ratio", "with the teacher's", times),
        Column("published_top1", f"published, {teacher} → {student}", number(2)),
        Column("how", "its rule", text),
        Column("published_gain", "its gain", points),
    )
    lines = [
        *_image(store, grid, plots.accuracy_cost(part, file_name(0, title), "", None)),
        f"**{_label(part)}: {markdown_text(verdicts.in_short(part))}**",
        "",
        *Table("", "", columns, rows).markdown_lines(),
        "",
        f"Ours is accuracy after the last epoch. {LEGEND} A published gain is left out where method and plain student were not "
        "reported by the same rule.",
    ]
    return "\n".join(lines) + "\n"


def along(store: Store, grid: str) -> str:
    """Markdown: the sweeps of a grid, then every method of every setting against its own `none`."""
    frame, summary = _loaded(store, grid)
    rows = frames.by_pair(frame)
    lines = []
    for index, (key, part) in enumerate(summary.groupby(PAIR_COLUMNS, sort=False)):
        runs = rows[(rows[PAIR_COLUMNS] == key).all(axis=1)]
        for swept in sweeps.find(runs):
            lines += _image(store, grid, plots.sweep(swept, part, file_name(index, part["pair"].iloc[0]), "", None))
        table = Table("", "", (Column("method", "method"), *RESULT, Column("verdict", "shown to be")), part)
        lines += [f"{_label(part)}:", "", *table.markdown_lines(), ""]
    return "\n".join([*lines, LEGEND]) + "\n"


def precisions(store: Store, grid: str) -> str:
    """Markdown: what a grid that trains in fp32 and in bf16 found in both, paired by seed.

    Raises:
        ValueError: nothing was trained in both.
    """
    table = tables.precisions(_loaded(store, grid)[0])
    if table is None:
        raise ValueError(f"{grid}: nothing was trained in both precisions")
    return "\n".join(table.markdown_lines()) + "\n"


def repeating(store: Store, grids: Sequence[str]) -> str:
    """Markdown: for each grid its command, what it took on which hardware, and the checksum of its data."""
    found = []
    for grid in grids:
        records = frames.read(store, grid)[0]
        data = store.manifest(grid)["grid"]["data"]
        told = [f" --set data.{key}={data[key]}" for key in ("type", "path", "name") if isinstance(data, dict) and key in data]
        found.append(
            {
                "command": f"run {grid}{''.join(told)}",
                "trainings": len(records),
                "took_s": _busy_s(records),
                "hardware": "; ".join(sorted({f"{r.machine.hardware}, torch {r.machine.versions['torch']}" for r in records})),
                "digest": ", ".join(sorted({str(record.cell.data.get("digest")) for record in records})),
            }
        )
    columns = (
        Column("command", "./run_bench.py"),
        Column("trainings", "trainings", number(0)),
        Column("took_s", "took", seconds),
        Column("hardware", "on"),
        Column("digest", "SHA-256 of the data"),
    )
    return "\n".join(Table("", "", columns, pd.DataFrame(found)).markdown_lines()) + "\n"


def _loaded(store: Store, grid: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy frame and its summary."""
    costs = store.costs(grid)[0]
    frame = frames.bill(frames.tidy(frames.read(store, grid)[0]), costs)
    return frame, tables.summary(frame, costs)


def _label(part: pd.DataFrame) -> str:
    """What the numbers of a pair are, in words that stand beside them."""
    low, high = part["n"].min(), part["n"].max()
    seeds = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    return markdown_text(f"{part['pair'].iloc[0]}, {part['setting'].iloc[0]}, {seeds} seeds")


def _how(row: pd.Series) -> str:
    runs = f"best of {row['runs']:.0f} runs" if row["select"] == "best_of" else "mean"
    return f"{row['rule']} epoch, {runs}"


def _busy_s(records: Sequence[Record]) -> float:
    """Wall seconds in which at least one of the trainings ran."""
    total, until = 0.0, None
    for start, end in sorted((datetime.fromisoformat(r.started), datetime.fromisoformat(r.finished)) for r in records):
        if until is None or end > until:
            total += (end - (start if until is None else max(start, until))).total_seconds()
            until = end
    return total


def _image(store: Store, grid: str, figure: Figure | None) -> list[str]:
    """Markdown of a figure that the grid's report has written; the results folder lies two below the README."""
    if figure is None:
        return []
    folder = "/".join([*store.root.resolve().parts[-2:], grid, "report/figures"])
    return [f"![{markdown_text(figure.alt)}]({folder}/{figure.name}.png)", ""]
