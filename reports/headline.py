"""What our pages show of finished grids: the figure, the answer in a sentence, ours beside the published, how to repeat it.

`make readme` writes it into `results/reference/README.md`, where a test compares it with the records again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import pandas as pd

from bench.records.comparisons import Baseline
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.naming import nested, short_form
from bench.records.record import Record
from reports import reading, sweeps, verdicts
from reports.figures.accuracy_cost import accuracy_cost
from reports.figures.style import Figure
from reports.figures.sweeps import sweep
from reports.pair import Pair
from reports.report import Report
from reports.tables.compared import in_both_precisions
from reports.tables.published import same_rule
from reports.tables.table import Column, Table, markdown_text, number, p_value, points, seconds, text, times

TOP1 = Column("top1", "top-1, %", number(2), plus_minus="half")
GAIN = Column("gain", "gain over none", points, low_high=("low", "high"))
CLAIM = Column("claim", "claim")
KD = Column("gain_kd", "gain over kd", points, low_high=("low_kd", "high_kd"))
WITH_TEACHER = Column("with_teacher_ratio", "with the teacher's", times)
RESULT = (Column("n", "seeds", number(0)), TOP1, GAIN, Column("p_adjusted", "p", p_value), CLAIM)
LEGEND = (
    "± is half the 95 % t-interval of the mean over seeds. The brackets hold the simultaneous 95 % interval of the gain, "
    "paired by seed. Interval and p are corrected for all comparisons of the grid and for looks at results. Shown: the "
    "interval leaves out 0. Suggested: p is below .05, but only before correction. Open: neither, which does not mean equal."
)


MAIN = (
    "Of each family the sentence covers the variant that differs from the defaults in the fewest arguments. The others are "
    "ablations, which only the table shows. "
)
RULES = " A published gain is left out where the method and the plain student were not reported by the same rule."


def one_pair(report: Report) -> Pair:
    """The pair of a grid that has one.

    Raises:
        ValueError: it has none or several, or no plain student.
    """
    if len(report.pairs) != 1 or report.pairs[0].baseline(Baseline.NONE) is None:
        raise ValueError(f"{report.grid}: one pair, with its plain student, is what can be summed up")
    return report.pairs[0]


def first(folder: GridFolder) -> str:
    """Markdown for the front page: the verdict of a grid of one pair, and its main methods in five columns.

    The cost is the training time, or where no step was timed the FLOPs.
    """
    report = Report.of_grid(folder)
    pair = one_pair(report)
    main = _main_variants(pair, report.records)
    cost = Column("with_teacher_ratio", f"{_unit(pair)} ÷ none, with the teacher's", times)
    table = Table("", "", (Column("label", pair.title), TOP1, GAIN, CLAIM, cost), main)
    sentence = markdown_text(verdicts.in_short(main))
    lines = [f"**{_label(pair)}: {sentence}**", "", *table.markdown_lines(), "", LEGEND]
    return "\n".join(lines) + "\n"


def answer(folder: GridFolder, published: pd.DataFrame) -> str:
    """Markdown: accuracy against cost of a grid of one pair, the verdict, and its methods beside published ones.

    Args:
        folder: of the grid. The figure is the one that the grid's report writes.
        published: rows of `reports.published.read` of one pair, a row a method; the pair and its training need not be ours.

    Raises:
        ValueError: the grid has not exactly one pair with a plain student, or the published rows are not of one pair.
    """
    report = Report.of_grid(folder)
    pair = one_pair(report)
    [student], [teacher] = published["student"].unique(), [name for name in published["teacher"].unique() if name]
    main, many = _main_variants(pair, report.records), len(pair.methods)
    against_kd = [KD] if pair.methods["primary_kd"].eq(True).any() else []
    columns = (
        Column("label", pair.title),
        *RESULT,
        *against_kd,
        Column("ratio", f"{_unit(pair)} ÷ none", times, low_high=("ratio_low", "ratio_high")),
        WITH_TEACHER,
        Column("published_top1", f"published, {teacher} → {student}", number(2)),
        Column("how", "its rule", text),
        Column("published_gain", "its gain", points),
    )
    lines = [
        *image(folder, accuracy_cost(pair)),
        f"**{_label(pair)}: {markdown_text(verdicts.in_short(main))}**",
        "",
        *Table("", "", columns, _with_published(pair.methods, published.set_index("method"))).markdown_lines(),
        "",
        f"{MAIN * (len(main) < many)}Ours is accuracy after the last epoch. {LEGEND}{RULES}",
    ]
    return "\n".join(lines) + "\n"


def _unit(pair: Pair) -> str:
    """What costs are stated in: the training time, or FLOPs where no step was timed."""
    return "FLOPs" if pair.methods["cost_unit"].iloc[0] == "FLOPs" else "training cost"


def _main_variants(pair: Pair, records: Sequence[Record]) -> pd.DataFrame:
    """The rows of a pair's summary, of each family those that differ from the defaults in the fewest arguments."""
    specs = {record.id: record.cell.method for record in records}
    runs = pair.runs.drop_duplicates("method_id")
    changed = {
        method_id: sum(len(part) - 1 for part in nested(short_form(specs[cell_id])) if part["type"] != "sum")
        for method_id, cell_id in zip(runs["method_id"], runs["id"], strict=True)
    }
    count = pair.methods["method_id"].map(changed)
    return pair.methods[count == count.groupby(pair.methods["family"]).transform("min")]


def _with_published(methods: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary beside published numbers of their families.

    Args:
        theirs: rows of `reports.published.read` by method.
    """
    plain = theirs.loc[Baseline.NONE.value]
    rows = methods.copy()
    for name in ("top1", "rule", "select"):
        rows["published_" + name] = rows["family"].map(theirs[name])
    alike = {family: same_rule(row, plain) for family, row in theirs.iterrows()}
    gain = rows["published_top1"] - plain["top1"]
    rows["published_gain"] = gain.where(rows["family"].map(alike).eq(True) & (rows["baseline"] != Baseline.NONE))
    rows["how"] = [how(theirs.loc[family]) if family in theirs.index else "" for family in rows["family"]]
    return rows


def along(folder: GridFolder) -> str:
    """Markdown: the sweeps of a grid, then every method of every setting against its own `none`."""
    lines = []
    for pair in Report.of_grid(folder).pairs:
        for found in sweeps.find(pair.runs):
            lines += image(folder, sweep(found, pair))
        table = Table("", "", (Column("label", "method"), *RESULT), pair.methods)
        lines += [f"{_label(pair)}:", "", *table.markdown_lines(), ""]
    return "\n".join([*lines, LEGEND]) + "\n"


def precisions(folder: GridFolder) -> str:
    """Markdown: what a grid that trains in fp32 and in bf16 found in both, paired by seed.

    Raises:
        ValueError: nothing was trained in both.
    """
    report = Report.of_grid(folder)
    table = in_both_precisions(report.frame, report.design)
    if table is None:
        raise ValueError(f"{folder.name}: nothing was trained in both precisions")
    return "\n".join(table.markdown_lines()) + "\n"


def repeating(results: ResultsFolder, grids: Sequence[str], files: Mapping[str, str]) -> str:
    """Markdown: for each grid its command, what it took on which hardware, and the checksum of its data; then the sums.

    Args:
        files: of grids that do not ship: the grid file, which names the data as they were, and options.
    """
    found = []
    spent: dict[str, float] = defaultdict(float)  # seconds by hardware
    for grid in grids:
        folder = results.grid(grid)
        records = reading.read(folder)[0]
        for hardware in {record.hardware for record in records}:
            spent[hardware] += busy_s([record for record in records if record.hardware == hardware])
        data = folder.manifest()["grid"]["data"]
        given = [f" --set data.{key}={data[key]}" for key in ("type", "path", "name") if isinstance(data, dict) and key in data]
        found.append(
            {
                "command": f"run {files[grid]}" if grid in files else f"run {grid}{''.join(given)}",
                "trainings": len(records),
                "took_s": busy_s(records),
                "hardware": "; ".join(sorted({f"{r.hardware}, torch {r.machine.versions['torch']}" for r in records})),
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
    longest = sorted(spent, key=lambda hardware: -spent[hardware])
    sums = ", ".join(f"{seconds(spent[hardware])} on {markdown_text(hardware)}" for hardware in longest)
    return "\n".join([*Table("", "", columns, pd.DataFrame(found)).markdown_lines(), "", f"All of them took {sums}."]) + "\n"


def _label(pair: Pair) -> str:
    """What the numbers of a pair are, in words that stand beside them."""
    low, high = pair.methods["n"].min(), pair.methods["n"].max()
    seeds = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    return markdown_text(f"{pair.full_title}, {seeds} seeds")


def how(row: pd.Series) -> str:
    runs = f"best of {row['runs']:.0f} runs" if row["select"] == "best_of" else "mean"
    return f"{row['rule']} epoch, {runs}"


def busy_s(records: Sequence[Record]) -> float:
    """Wall seconds in which at least one of the trainings ran."""
    total, until = 0.0, None
    for start, end in sorted((datetime.fromisoformat(r.started), datetime.fromisoformat(r.finished)) for r in records):
        if until is None or end > until:
            total += (end - (start if until is None else max(start, until))).total_seconds()
            until = end
    return total


def image(folder: GridFolder, figure: Figure | None) -> list[str]:
    """Markdown of a figure that the grid's report has written, for a page in the results folder."""
    if figure is None:
        return []
    return [f"![{markdown_text(figure.alt)}]({folder.name}/report/figures/{figure.name}.png)", ""]
