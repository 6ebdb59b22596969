"""Accuracy against training cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from reports.figures import figures_of_pair, letters
from reports.figures.style import (
    DISTILLED,
    KIND,
    MUTED,
    PAPER,
    Figure,
    canvas,
    characters,
    drawn,
    finished,
    names_beside,
    small,
)
from reports.pair import Pair
from reports.style import Style

TIME_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
FLOP_UNITS = tuple((10.0**power, f"10^{power} FLOPs") for power in (15, 12, 9, 6, 3, 0))


@dataclass(frozen=True)
class _Points:
    """One point a method."""

    part: pd.DataFrame
    own: np.ndarray  # cost without the teacher's training, in units
    total: np.ndarray  # with it
    top1: np.ndarray
    shown: np.ndarray  # the same, but never below the scale
    low: np.ndarray  # whether it lies below the scale; an arrow marks it, its name gives the value
    unit: str
    known: np.ndarray  # whether the cost with the teacher's training is known
    missing: list[str]  # methods without any cost here

    @property
    def log(self) -> bool:
        return bool(self.total.max() > 4 * self.own.min() > 0)


@figures_of_pair(10)
def accuracy_cost(pair: Pair) -> Figure | None:
    """Accuracy against training cost with the teacher's training and (hollow) without it, and the former's Pareto frontier.

    A method whose teacher's cost is unknown stands at its own cost, hollow, and is on no frontier. Nothing is drawn where all
    cost the same.
    """
    points = _points(pair.methods)
    if points is None or np.ptp(np.concatenate([points.own, points.total])) == 0:
        return None
    title = f"{pair.full_title}: what accuracy costs"
    at = np.flatnonzero(points.known)
    best = at[frontier(points.total[at], points.top1[at])]
    with drawn(pair.style):
        figure, axes = canvas(3.7, title)
        if points.log:
            axes.set_xscale("log")
        _draw_methods(axes, points, pair.style)
        axes.step(
            points.total[best],
            points.top1[best],
            where="post",
            color=MUTED,
            lw=1.2,
            zorder=1,
            label="Pareto frontier of the means",
        )
        axes.margins(x=0.16, y=0.14)
        xlabel = f"Training cost with the teacher's training, {points.unit}"
        if points.missing:
            xlabel += f"\nnot drawn, for want of a cost: {', '.join(points.missing)}"
        axes.set(xlabel=xlabel, ylabel="Top-1 accuracy, %")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _fit_ticks(axes, points.log)
        figure.legend(loc="outside lower left", ncols=2)
        lines = names_beside(list(points.part["label"]), characters(28))
        labeled = zip(lines, points.top1, points.low, points.known, strict=True)
        names = [
            name + f" ({value:.1f} %)" * bool(below) + " (teacher's cost unknown)" * (not known)
            for name, value, below, known in labeled
        ]
        _write_names(figure, axes, points.total, points.shown, names)
        labels = points.part["label"].to_numpy()
        values = "; ".join(
            f"{m} {a:.2f} % at {c:.3g}" + ", its teacher's cost unknown" * (not k)
            for m, a, c, k in zip(labels, points.top1, points.total, points.known, strict=True)
        )
        values += f"; without a cost: {', '.join(points.missing)}" if points.missing else ""
        alt = f"Scatter plot of accuracy against training cost in {points.unit}, the teacher's included: {values}. "
        return finished(
            figure, f"{pair.name}-accuracy-cost", title, f"{alt}On the Pareto frontier of the means: {', '.join(labels[best])}."
        )


def _points(methods: pd.DataFrame) -> _Points | None:
    timed = methods["train_s"].notna().any()
    own, total = ("train_s", "with_teacher_s") if timed else ("flops", "with_teacher_flops")
    part = methods[methods[own].notna()]
    if part.empty:
        return None
    known = part[total].notna().to_numpy()
    drawn_at = part[total].fillna(part[own])
    most = drawn_at.max()
    units = TIME_UNITS if timed else FLOP_UNITS
    size, unit = next((size, unit) for size, unit in units if most >= 2 * size or size == 1)
    top1 = part["top1"].to_numpy()
    floor = _floor(top1)
    costs = part[own].to_numpy() / size, drawn_at.to_numpy() / size
    missing = list(methods[methods[own].isna()]["label"])
    return _Points(part, *costs, top1, np.maximum(top1, floor), top1 < floor, unit, known, missing)


def _draw_methods(axes: Axes, points: _Points, style: Style) -> None:
    """Every method's point, a dotted line to its cost without the teacher, and an arrow where it lies below the scale."""
    own, total, shown = points.own, points.total, points.shown
    needs, half = points.part["needs"].to_numpy(), points.part["half"].fillna(0).to_numpy()
    colors = np.array([style.color(name, KIND[kind][1]) for name, kind in zip(points.part["label"], needs, strict=True)])
    for kind, (marker, plain, label) in KIND.items():
        for known in (True, False):
            these = (needs == kind) & (points.known == known)
            if these.any():
                text = label if known else f"{label}, whose cost is unknown"
                axes.plot([], [], marker, color=plain, mfc=plain if known else PAPER, ms=6, label=text)
            for at in np.flatnonzero(these):
                look: dict[str, Any] = {"fmt": marker, "color": colors[at], "ms": 6, "lw": 1, "capsize": 2, "zorder": 3}
                bar = 0 if points.low[at] else half[at]
                axes.errorbar(total[at], shown[at], bar, mfc=colors[at] if known else PAPER, **look)
        for at in np.flatnonzero((needs == kind) & (own < total)):
            axes.hlines(shown[at], own[at], total[at], color=colors[at], lw=1, linestyles="dotted", zorder=2)
            axes.plot(own[at], shown[at], marker, color=colors[at], mfc=PAPER, ms=6, zorder=3)
    for x, y in zip(total[points.low], shown[points.low], strict=True):
        down = {"arrowstyle": "<-", "color": MUTED}
        axes.annotate("", (x, y), xytext=(0, -14), textcoords="offset points", arrowprops=down)
    if (own < total).any():
        axes.plot([], [], "s", color=DISTILLED, mfc=PAPER, ms=6, label="the same, its teacher's training not counted")


def _floor(top1: np.ndarray) -> float:
    """Lowest accuracy on the scale: where one falls far behind, the others stay distinguishable."""
    middle = float(np.median(top1))
    return middle - max(2 * (float(top1.max()) - middle), 1.0)


def _fit_ticks(axes: Axes, log: bool) -> None:
    if not log:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    low, high = axes.get_xlim()
    if math.log10(high / low) < 1.6:  # too few decades for a tick each
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        axes.set_xticks([step for step in steps if low <= step <= high])


def frontier(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in accuracy at the same or a lower cost, cheapest first."""
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy[order][:-1]]))
    return order[accuracy[order] > best]


def _write_names(figure: Canvas, axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Write names beside their points, each where it first finds room."""
    with letters.unwarned():
        figure.canvas.draw()
    places = axes.transData.transform(np.column_stack([x, y]))
    dpi = figure.dpi / 72
    taken = [(px - 5 * dpi, py - 5 * dpi, px + 5 * dpi, py + 5 * dpi) for px, py in places]
    for index in np.argsort(-y):
        (px, py), name = places[index], names[index]
        lines = name.split("\n")
        size = small() / 8.5 * dpi
        width, height = 5.6 * max(map(len, lines)) * size, 10 * len(lines) * size
        choices = [(dx, dy) for dy in (0, 9, -9, 18, -18, 27, -27, 36, -36) for dx in (8, -8)]
        for dx, dy in choices:
            left = px + dx * dpi - (width if dx < 0 else 0)
            box = (left, py + dy * dpi - height / 2, left + width, py + dy * dpi + height / 2)
            if all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken):
                break
        else:
            dx, dy = choices[0]
        taken.append(box)
        thread = {"arrowstyle": "-", "color": MUTED, "lw": 0.5} if abs(dy) > 9 else None
        axes.annotate(
            name,
            (x[index], y[index]),
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            fontsize=small(),
            arrowprops=thread,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
