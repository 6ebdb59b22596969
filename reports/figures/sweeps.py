"""Accuracy along a hyper-parameter."""

from __future__ import annotations

import math
import re

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.records.comparisons import Baseline
from reports.figures import figures_of_pair
from reports.figures.style import CYCLE, PLAIN, Figure, canvas, drawn, finished, plus_minus
from reports.pair import Pair
from reports.sweeps import Sweep, find


@figures_of_pair(50)
def sweeps(pair: Pair) -> list[Figure]:
    """One figure for each hyper-parameter of which the grid tried several values."""
    return [sweep(found, pair) for found in find(pair.runs)]


def sweep(found: Sweep, pair: Pair) -> Figure:
    """Accuracy with 95 % intervals, and the plain student's as a band."""
    title = f"{pair.full_title}: accuracy along {found.argument}"
    rows = pair.methods.set_index("method_id")
    values = []
    with drawn(pair.style):
        figure, axes = canvas(3.2, title)
        _set_scale(axes, sorted(value for line in found.lines for value, _ in line.points))
        if none := pair.baseline(Baseline.NONE):
            plain, half = none["top1"], none["half"]
            axes.axhline(plain, color=PLAIN, lw=1.2, ls="dashed", label=none["label"])
            if not math.isnan(half):
                axes.axhspan(plain - half, plain + half, color=PLAIN, alpha=0.15, lw=0)
            values.append(f"{none['label']} {plus_minus(plain, half)} %")
        for index, line in enumerate(found.lines):
            x, method_ids = zip(*line.points, strict=True)
            some = rows.loc[list(method_ids)]
            color, marker = CYCLE[index % len(CYCLE)], "os^Dv"[index % 5]
            label = line.label or found.argument
            axes.errorbar(x, some["top1"], some["half"], color=color, marker=marker, ms=6, lw=1.4, capsize=2, label=label)
            points = zip(x, some["top1"], some["half"], strict=True)
            values += [f"{line.label} {value:g}: {plus_minus(mean, half)} %".strip() for value, mean, half in points]
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=found.argument.replace(".", ": ", 1), ylabel="Top-1 accuracy, %")
        figure.legend(loc="outside lower left", ncols=3)
        name = f"{pair.name}-{re.sub(r'[^a-z0-9]+', '-', found.argument.lower())}"
        return finished(figure, name, title, f"Accuracy along {found.argument}: {'; '.join(values)}.")


def _set_scale(axes: Axes, values: list[float]) -> None:
    """Logarithmic where the values span more than a factor of 20."""
    if values[-1] < 20 * abs(values[0]):
        return
    if values[0] > 0:
        axes.set_xscale("log")
    elif values[0] == 0:
        axes.set_xscale("symlog", linthresh=min(value for value in values if value > 0))
