"""Performance profiles: on what share of the pairs a method gains at least so much."""

from __future__ import annotations

import numpy as np

from bench import stats
from reports.figures import figures_of_report
from reports.figures.style import CYCLE, INK, Figure, canvas, characters, drawn, finished, names_beside
from reports.over_pairs import gains_over_pairs
from reports.report import Report
from reports.style import Style

FROM = 3  # pairs; two make no profile


@figures_of_report(12, section="ranks")
def profiles(report: Report) -> list[Figure]:
    """A figure for each setting with three pairs or more; the methods with the largest mean gains, one for each color."""
    if not report.pairs:
        return []
    shown = report.style.shown(report.summary)
    labels = dict(zip(shown["method_id"], shown["label"], strict=True))
    by_setting: dict[str, list[tuple[str, np.ndarray]]] = {}
    for each in gains_over_pairs(report.frame, report.summary, report.design):
        some = ~np.isnan(each.differences).all(axis=1)
        if some.sum() >= FROM and each.row["method_id"] in labels:
            means = np.nanmean(each.differences[some], axis=1)
            by_setting.setdefault(each.row["setting"], []).append((labels[each.row["method_id"]], means))
    return [_profile(setting, curves, index, report.style) for index, (setting, curves) in enumerate(by_setting.items())]


def _profile(setting: str, curves: list[tuple[str, np.ndarray]], index: int, style: Style) -> Figure:
    curves = sorted(curves, key=lambda curve: -curve[1].mean())
    curves = [curves[place] for place in style.arranged([label for label, _ in curves])]
    first, rest = curves[: len(CYCLE)], curves[len(CYCLE) :]
    title = f"{setting}: share of pairs with at least such a gain over none"
    values = np.concatenate([means for _, means in first])
    margin = 0.05 * (float(np.ptp(values)) or 1.0)
    grid = np.linspace(values.min() - margin, values.max() + margin, 400)
    with drawn(style):
        figure, axes = canvas(3.2, title)
        axes.axvline(0, color=INK, lw=1)
        names = names_beside([label for label, _ in first], characters(28))
        for line, ((label, means), name) in enumerate(zip(first, names, strict=True)):
            share = 100 * stats.profile(means, grid)
            axes.plot(grid, share, color=style.color(label, CYCLE[line]), lw=1.4, ls=("-", (0, (5, 1.5)))[line % 2], label=name)
        cut = f"\n{len(first)} of {len(curves)} methods: those with the largest gains" if rest else ""
        axes.set(xlabel=f"Mean gain over none, points{cut}", ylabel="Pairs with that gain or more, %", ylim=(-3, 103))
        figure.legend(loc="outside lower left", ncols=3)
        shares = [f"{label} gains on {100 * (means > 0).mean():.0f} % of {len(means)} pairs" for label, means in curves]
        left_out = f" Not drawn: {', '.join(label for label, _ in rest)}." if rest else ""
        name = "profiles" + (f"-{index + 1}" if index else "")
        return finished(figure, name, title, f"Performance profiles: {'; '.join(shares)}.{left_out}")
