"""What the README shows of finished grids: the figure, the answer in one sentence, ours beside the published, how to repeat it.

`make readme` writes it into the README, where a test compares it with the records again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.store import Store
from reports import frame as frames
from reports import plots, sweeps, tables, verdicts
from reports.frame import PAIR_COLUMNS
from reports.page import slug
from reports.plots import Figure
from reports.published import read as read_published
from reports.tables import Column, Table, number, points, seconds, times

TOP1 = Column("top1", "top-1, %", number(2), plus_minus="half")
GAIN = Column("gain", "gain over none", points, low_high=("low", "high"))


def answer(store: Store, grid: str, source: str, pair: tuple[str, str]) -> str:
    """Markdown: accuracy against cost of a grid of one pair, the verdict, and its methods beside a published pair.

    Args:
        store, grid: the records. The figure is the one that the grid's report writes.
        source: of the published numbers, as the files in results/published name it.
        pair: (student, teacher) whose numbers were published; its training need not be ours, and both are named.
    """
    _, part = _loaded(store, grid)
    setting, title = part["setting"].iloc[0], part["pair"].iloc[0]
    figure = plots.accuracy_cost(part, f"01-{slug(title)}-accuracy-cost", "What accuracy costs", None)
    told = [verdicts.against_none(row) for row in part.to_dict("records") if _family(row["method"]) in ("tfd", "kd")]
    theirs = read_published()
    theirs = theirs[(theirs["source"] == source) & (theirs["student"] == pair[0]) & theirs["teacher"].isin(["", pair[1]])]
    top1 = theirs.drop_duplicates("method").set_index("method")["top1"]
    rows = part.assign(published=part["method"].map(_family).map(top1))
    rows["published_gain"] = (rows["published"] - top1["none"]).where(rows["method"] != "none")
    columns = (
        Column("method", f"{title}, {part['epochs'].max():.0f} epochs"),
        TOP1,
        GAIN,
        Column("ratio", "training cost ÷ none's", times, low_high=("ratio_low", "ratio_high")),
        Column("whole_ratio", "with the teacher's", times),
        Column("published", f"{source}: {pair[1]} → {pair[0]}, 240 epochs", number(2)),
        Column("published_gain", "its gain", points),
    )
    lines = [
        *_image(store, grid, figure),
        f"**{title} on {setting}, {part['n'].max():.0f} seeds: {'; '.join(told)}.**",
        "",
        *_lines(columns, rows),
    ]
    return "\n".join(lines) + "\n"


def along(store: Store, grid: str) -> str:
    """Markdown: the sweeps of a grid, then every method of every setting against its own `none`."""
    frame, summary = _loaded(store, grid)
    rows = frames.by_pair(frame)
    lines = []
    for index, (key, part) in enumerate(summary.groupby(PAIR_COLUMNS, sort=False), start=1):
        runs = rows[(rows[PAIR_COLUMNS] == key).all(axis=1)]
        for swept in sweeps.find(runs):
            name = f"{index:02d}-{slug(part['pair'].iloc[0])}-{slug(swept.argument)}"
            lines += _image(store, grid, plots.sweep(swept, part, name, f"What hangs on {swept.argument}", None))
    columns = (Column("setting", "setting"), Column("method", "method"), TOP1, GAIN, Column("verdict", "shown to be"))
    return "\n".join([*lines, *_lines(columns, summary)]) + "\n"


def repeating(store: Store, grids: Sequence[str]) -> str:
    """Markdown: for each grid its command, what it took on which hardware, and the checksum of its data."""
    found = []
    for grid in grids:
        records = store.records(grid)[0]
        machine, cell = records[0].machine, records[0].cell
        core_s = sum(record.threads * sum(record.clocks.model_dump().values()) for record in records)
        found.append(
            {
                "command": f"`./run_bench.py run {grid}`",
                "trainings": len(records),
                "wall_s": core_s / machine.cores,
                "hardware": f"{machine.cpu}, {machine.cores} cores, torch {machine.versions['torch']}, {cell.precision}",
                "digest": f"`{cell.data.get('digest')}`",
            }
        )
    columns = (
        Column("command", "command"),
        Column("trainings", "trainings", number(0)),
        Column("wall_s", "took", seconds),
        Column("hardware", "on"),
        Column("digest", "SHA-256 of the images and labels"),
    )
    return "\n".join(_lines(columns, pd.DataFrame(found))) + "\n"


def _loaded(store: Store, grid: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy frame and its summary."""
    costs = store.costs(grid)[0]
    frame = frames.bill(frames.tidy(frames.read(store, grid)[0]), costs)
    return frame, tables.summary(frame, costs)


def _family(method: str) -> str:
    """'tfd+kd' of 'tfd(ramp_epochs=1)+kd': the name that published tables know."""
    return re.sub(r"\([^()]*\)|\[[^\]]*\]", "", method).strip()


def _image(store: Store, grid: str, figure: Figure | None) -> list[str]:
    """Markdown of a figure that the grid's report has written."""
    if figure is None:
        return []
    path = store.report_folder(grid) / "figures" / f"{figure.name}.png"
    return [f"![{figure.alt}]({path.relative_to(store.root.parent.parent).as_posix()})", ""]


def _lines(columns: tuple[Column, ...], rows: pd.DataFrame) -> list[str]:
    """A Markdown table without its heading; what stands in backticks is ours and stays as it is."""
    table = Table("", "", columns, rows)
    plain: list[Any] = [[column.title for column in columns], *table.rows()]
    written = [[cell if cell.startswith("`") else tables.markdown_text(cell) for cell in row] for row in plain]
    rule = ["---:" if column.numeric else "---" for column in columns]
    return ["| " + " | ".join(row) + " |" for row in [written[0], rule, *written[1:]]]
