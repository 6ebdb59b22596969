"""Gains over the plain student."""

from __future__ import annotations

import math

import pandas as pd

from bench.stats import SHOWN
from reports.figures import figures_of_pair
from reports.figures.style import INK, KIND, MUTED, PAPER, Figure, canvas, characters, drawn, finished, names_beside, row_inches
from reports.pair import Pair


@figures_of_pair(20)
def forest(pair: Pair) -> Figure | None:
    """Gains over `none` with simultaneous 95 % intervals; filled where one is shown. What collapsed lies off the scale."""
    part = pair.methods[pair.methods["gain"].notna()].sort_values("gain", ascending=False)
    part = part.iloc[pair.style.arranged(list(part["label"]))[::-1]]  # the first on top
    if part.empty:
        return None
    title = f"{pair.full_title}: gains over none"
    with drawn(pair.style):
        names = names_beside(list(part["label"]), characters(28))
        figure, axes = canvas(1.2 + row_inches(names) * len(part), title)
        axes.axvline(0, color=INK, lw=1)
        values, off_scale = [], []
        edges = _edges(part)
        for at, row in enumerate(part.itertuples()):
            marker, color, _ = KIND[row.needs]
            color = pair.style.color(row.label, color)
            inside = min(max(row.gain, edges[0]), edges[1])
            if not math.isnan(row.low):
                axes.hlines(at, max(row.low, edges[0]), min(row.high, edges[1]), color=color, lw=1.6)
            if inside != row.gain:
                marker = "<" if row.gain < inside else ">"
            axes.plot(inside, at, marker, color=color, mfc=color if row.word in SHOWN else PAPER, ms=7)
            values.append(f"{row.label} {row.gain:+.2f} ({row.low:+.2f} to {row.high:+.2f}), {row.claim}")
            off_scale.append(f" ({row.gain:+.1f})" * (inside != row.gain))
        for kind, (marker, color, label) in KIND.items():
            if (part["needs"] == kind).any():
                axes.plot([], [], marker, color=color, ms=7, label=label)
        axes.plot([], [], "o", color=MUTED, mfc=PAPER, ms=7, label="hollow: not shown")
        axes.set_yticks(range(len(part)), [name + off for name, off in zip(names, off_scale, strict=True)])
        axes.set_xlim(*_widened(edges))
        axes.set(xlabel="Gain over none in points, with simultaneous 95 % intervals", ylim=(-0.7, len(part) - 0.3))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=2)
        alt = f"Forest plot of gains over none in points: {'; '.join(reversed(values))}."
        return finished(figure, f"{pair.name}-gains", title, alt)


def _edges(part: pd.DataFrame) -> tuple[float, float]:
    """The scale, in points: wide enough for all gains that are not far from the others, and for most of their intervals."""
    middle = float(part["gain"].median())
    reach = max(4 * float((part["gain"] - middle).abs().median()), 3.0)
    near = part[(part["gain"] - middle).abs() <= reach]
    room = 1.5 * max(float(near["gain"].abs().max()), 1.0)
    low, high = (near[name].fillna(near["gain"]) for name in ("low", "high"))
    return max(float(low.min()), float(near["gain"].min()) - room), min(float(high.max()), float(near["gain"].max()) + room)


def _widened(edges: tuple[float, float]) -> tuple[float, float]:
    """The edges with a margin, and with 0 among them."""
    low, high = min(edges[0], 0.0), max(edges[1], 0.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
