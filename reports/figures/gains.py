"""Gains over the plain student."""

from __future__ import annotations

import math

import matplotlib as mpl

from bench.records.naming import abbreviated
from bench.stats import SHOWN
from reports.figures import figures_of_pair
from reports.figures.style import INK, KIND, MUTED, PAPER, STYLE, Figure, canvas, finished
from reports.pair import Pair


@figures_of_pair(20)
def forest(pair: Pair) -> Figure | None:
    """Gains over `none` with 95 % intervals; filled where the corrected test shows a difference."""
    part = pair.methods[pair.methods["gain"].notna()].sort_values("gain")
    if part.empty:
        return None
    title = f"{pair.full_title}: gains over none"
    with mpl.rc_context(STYLE):
        figure, axes = canvas(1.2 + 0.26 * len(part), title)
        axes.axvline(0, color=INK, lw=1)
        values = []
        for at, row in enumerate(part.itertuples()):
            marker, color, _ = KIND[row.needs]
            if not math.isnan(row.low):
                axes.hlines(at, row.low, row.high, color=color, lw=1.6)
            axes.plot(row.gain, at, marker, color=color, mfc=color if row.verdict in SHOWN else PAPER, ms=7)
            values.append(f"{row.label} {row.gain:+.2f} ({row.low:+.2f} to {row.high:+.2f}), {row.verdict}")
        for kind, (marker, color, label) in KIND.items():
            if (part["needs"] == kind).any():
                axes.plot([], [], marker, color=color, ms=7, label=label)
        axes.plot([], [], "o", color=MUTED, mfc=PAPER, ms=7, label="hollow: no difference shown")
        axes.set_yticks(range(len(part)), [abbreviated(name) for name in part["label"]])
        axes.set(xlabel="Gain over none in points, with 95 % intervals", ylim=(-0.7, len(part) - 0.3))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8.5)
    alt = f"Forest plot of gains over none in points: {'; '.join(reversed(values))}."
    return finished(figure, f"{pair.name}-gains", title, alt)
