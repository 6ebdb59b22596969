"""Published numbers beside ours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.records.naming import abbreviated
from reports.figures import figures_of_report
from reports.figures.style import DISTILLED, FREE, PAPER, RULE, Figure, canvas, characters, drawn, finished
from reports.published import read
from reports.report import Report
from reports.style import WIDTH, Style
from reports.tables.published import beside_published

TITLE = "Ours beside published"


@figures_of_report(20, section="published")
def published(report: Report) -> Figure | None:
    """Published numbers (diamonds) and ours under the same rule (dots)."""
    table = beside_published(report.shown_frame, read()).styled(report.style).frame if report.pairs else pd.DataFrame()
    if table.empty:
        return None
    table = table[table["ours_their_rule"].notna()].drop_duplicates(["pair", "method", "published", "setting", "chosen"])
    return _drawn(table, report.style) if len(table) else None


def _drawn(table: pd.DataFrame, style: Style) -> Figure:
    upwards = table.iloc[::-1]
    with drawn(style):
        figure, axes = canvas(1.2 + 0.24 * len(table), TITLE, wider=6.2 / WIDTH)
        at = np.arange(len(table))
        axes.hlines(at, upwards["published"], upwards["ours_their_rule"], color=RULE, lw=2.5)
        axes.plot(upwards["published"], at, "D", color=DISTILLED, mfc=PAPER, ms=6, label="published")
        axes.plot(upwards["ours_their_rule"], at, "o", color=FREE, ms=6, label="ours, under its rule")
        axes.plot(upwards["ours"], at, "|", color=FREE, ms=10, mew=1.6, label="ours, last epoch, mean")
        names = [f"{row.pair}, {row.method}" + f" (ours: {row.differs})" * bool(row.differs) for row in upwards.itertuples()]
        axes.set_yticks(at, abbreviated(names, characters(60)))
        axes.set(xlabel="Top-1 accuracy, %", ylim=(-0.7, len(table) - 0.3))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=3)
        values = "; ".join(
            f"{r.pair} {r.method} published {r.published:.2f}, ours {r.ours_their_rule:.2f}"
            + f" with {r.differs}" * bool(r.differs)
            for r in table.itertuples()
        )
        return finished(figure, "published", TITLE, f"Published and own accuracies: {values}.")
