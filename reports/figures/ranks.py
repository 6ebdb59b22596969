"""Ranks of methods over pairs of networks."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.records.naming import abbreviated
from reports.figures import figures_of_report
from reports.figures.style import FREE, MUTED, Figure, canvas, drawn, finished
from reports.report import Report
from reports.style import Style
from reports.tables.across_pairs import Ranks, ranks_of

TITLE = "Mean ranks and critical difference"


@figures_of_report(10, section="ranks")
def ranks(report: Report) -> list[Figure]:
    """Demšar's diagram: methods at their mean ranks, bars over groups that the test does not tell apart."""
    found = ranks_of(report)
    return [
        critical_difference(each, f"ranks-{index + 1}" if index else "ranks", report.style) for index, each in enumerate(found)
    ]


def critical_difference(ranks: Ranks, file: str = "ranks", style: Style | None = None) -> Figure:
    """The diagram of these ranks; methods that the style does not show were ranked all the same."""
    style = style or Style()
    all_ranks = pd.DataFrame({"label": ranks.labels, "rank": ranks.found.mean_ranks})
    shown = style.shown(all_ranks).sort_values("rank", kind="stable")
    names, values, critical = list(shown["label"]), shown["rank"].to_numpy(), ranks.found.critical
    title = f"{TITLE}, {ranks.setting}: {ranks.found.students} students, each counted once"
    groups = _groups(values, critical)
    below = 0.5 * len(groups) + 0.6
    half = math.ceil(len(names) / 2)
    with drawn(style, axes_grid=False):
        figure, axes = canvas(1.0 + 0.26 * (half + below), title)
        low, high = math.floor(values.min()), max(math.ceil(values.max()), math.floor(values.min()) + 1)
        axes.set(xlim=(low, high), ylim=(-below - half, 0), yticks=[], xlabel="Mean rank over students (1 is best)")
        axes.spines[["left", "right", "bottom"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _write_names(axes, names, values, below, (low, high))
        for level, (start, end) in enumerate(groups):
            depth = -0.5 * (level + 1)
            axes.plot([values[start], values[end]], [depth, depth], color=FREE, lw=4, solid_capstyle="round", clip_on=False)
        listed = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))
        alt = f"Mean ranks: {listed}. Ranks closer than {critical:.2f} do not differ by this test."
        return finished(figure, file, title, alt)


def _groups(values: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """First and last method of every longest run within the critical difference."""
    groups: list[tuple[int, int]] = []
    values = np.asarray(values)
    for start, value in enumerate(values):
        end = int(np.flatnonzero(values <= value + difference)[-1])
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return groups


def _write_names(axes: Axes, names: list[str], values: np.ndarray, below: float, edges: tuple[int, int]) -> None:
    """The better half to the left, the others to the right, each with a thread to its rank."""
    half = math.ceil(len(names) / 2)
    for index, (name, value) in enumerate(zip(abbreviated(names), values, strict=True)):
        left = index < half
        y = -below - (index if left else len(names) - 1 - index)
        edge = edges[0] if left else edges[1]
        axes.plot([value, value, edge], [0.0, y, y], color=MUTED, lw=0.8)
        side: tuple[int, Literal["left", "right"]] = (-4, "right") if left else (4, "left")
        text = f"{name}  {value:.2f}"
        axes.annotate(text, (edge, y), (side[0], 0), textcoords="offset points", ha=side[1], va="center")
