"""Ranks of methods over pairs of networks."""

from __future__ import annotations

import math
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.records.naming import abbreviated
from reports.figures import figures_of_report
from reports.figures.style import FREE, MUTED, STYLE, Figure, canvas, finished
from reports.report import Report
from reports.tables.across_pairs import Ranks, ranks_of

TITLE = "Mean ranks and critical difference"


@figures_of_report(10, section="ranks")
def ranks(report: Report) -> Figure | None:
    """Demšar's diagram: methods at their mean ranks, bars over groups without a significant difference."""
    found = ranks_of(report)
    return critical_difference(found) if found else None


def critical_difference(ranks: Ranks) -> Figure:
    """The diagram of these ranks."""
    names, values = list(ranks.mean.index), ranks.mean.to_numpy()
    groups = _groups(values, ranks.difference)
    below = 0.5 * len(groups) + 0.6
    half = math.ceil(len(names) / 2)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = canvas(1.0 + 0.26 * (half + below), TITLE)
        low, high = math.floor(values.min()), max(math.ceil(values.max()), math.floor(values.min()) + 1)
        axes.set(
            xlim=(low, high), ylim=(-below - half, 0), yticks=[], xlabel="Mean rank over the pairs of networks (1 is best)"
        )
        axes.spines[["left", "right", "bottom"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _write_names(axes, names, values, below, (low, high))
        for level, (start, end) in enumerate(groups):
            depth = -0.5 * (level + 1)
            axes.plot([values[start], values[end]], [depth, depth], color=FREE, lw=4, solid_capstyle="round", clip_on=False)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in ranks.mean.items())
    alt = f"Mean ranks: {listed}. Ranks closer than {ranks.difference:.2f} do not differ significantly."
    return finished(figure, "ranks", TITLE, alt)


def _groups(values: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """First and last method of every longest run within the critical difference."""
    groups: list[tuple[int, int]] = []
    for start, value in enumerate(values):
        end = int(np.flatnonzero(values <= value + difference)[-1])
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return groups


def _write_names(axes: Axes, names: list[str], values: np.ndarray, below: float, edges: tuple[int, int]) -> None:
    """The better half to the left, the others to the right, each with a thread to its rank."""
    half = math.ceil(len(names) / 2)
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        left = index < half
        y = -below - (index if left else len(names) - 1 - index)
        edge = edges[0] if left else edges[1]
        axes.plot([value, value, edge], [0.0, y, y], color=MUTED, lw=0.8)
        side: tuple[int, Literal["left", "right"]] = (-4, "right") if left else (4, "left")
        text = f"{abbreviated(name)}  {value:.2f}"
        axes.annotate(text, (edge, y), (side[0], 0), textcoords="offset points", ha=side[1], va="center")
