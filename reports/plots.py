"""Figures: drawn once with matplotlib, written as PNG, SVG and PDF, and set inline in the page in the page's own colours."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from bench import stats
from bench.records.record import Cost
from reports.frame import Curve
from reports.sweeps import Sweep

# Colours that people with any colour vision tell apart (Okabe and Ito), and the page's variables that take their place.
INK, MUTED, RULE, PAPER = "#1c1c1a", "#6b6b66", "#deded8", "#fefefd"
PLAIN, FREE, TAUGHT = "#737373", "#0072b2", "#d55e00"
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#737373", "#1c1c1a")
THEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    "#0072b2": "--blue", "#d55e00": "--orange", "#009e73": "--green", "#cc79a7": "--pink", "#e69f00": "--yellow",
    "#56b4e9": "--sky", "#737373": "--grey",
}  # fmt: skip
PARTS = {
    "data": "#e69f00",
    "student": "#0072b2",
    "teacher": "#d55e00",
    "method": "#cc79a7",
    "backward": "#56b4e9",
    "optimiser": "#009e73",
}
KIND = {
    "none": ("o", FREE, "without a teacher"),
    "teacher": ("s", TAUGHT, "with a teacher"),
    "self": ("^", "#009e73", "with a copy of itself"),
}

DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "font.family": "sans-serif", "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "reports",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "pdf.fonttype": 42, "hatch.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows in words for those who cannot see it."""

    name: str  # of its files
    title: str
    alt: str
    svg: str

    def inline(self) -> str:
        """The SVG for the page: its colours are the page's, its ids are its own."""
        svg = self.svg[self.svg.index("<svg") :]
        unwanted = r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<g id="title">.*?</g>'
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
        svg = re.sub(r'\bid="', f'id="{self.name}.', svg)
        svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{self.name}.", svg)
        svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
        svg = svg.replace("xlink:href=", "href=")
        svg = re.sub(r'\b(fill|stroke)="(#[0-9a-f]{6})"', r'style="\g<1>: \g<2>"', svg)  # an attribute cannot hold a variable
        return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda hit: f"{hit[1]}: {_themed(hit[2])}", svg)


def _themed(colour: str) -> str:
    return f"var({THEME[colour]})" if colour in THEME else colour


def _finish(figure: Canvas, name: str, title: str, alt: str, folder: Path | None) -> Figure:
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):  # fonts and ticks are settled only now
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once is enough for three formats
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    return Figure(name, title, alt, buffer.getvalue())


def _canvas(height: float, title: str, width: float = 5.2) -> tuple[Canvas, Axes]:
    """An empty drawing that says what it is about, also where it stands alone; the page strips that for its own caption."""
    lines = textwrap.wrap(title, int(17 * width))
    figure = Canvas(figsize=(width, height + 0.16 * len(lines)), dpi=DPI, layout="constrained")  # text is as wide as in the PNG
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8.5, color=MUTED, gid="title")
    return figure, figure.add_subplot()


def accuracy_cost(part: pd.DataFrame, pair: str, setting: str, folder: Path | None) -> Figure | None:
    """Accuracy against training cost, with the teacher's training and (hollow) without it, and the former's Pareto frontier."""
    name, title = f"{pair}-accuracy-cost", f"{setting}: what accuracy costs"
    timed = part["whole_s"].notna().any()
    keys = ["train_s", "whole_s"] if timed else ["flops", "whole_flops"]
    part = part[part[keys[1]].notna()]
    if part.empty:
        return None
    most = part[keys[1]].max()
    units = (
        [(3600, "hours"), (60, "minutes"), (1, "seconds")]
        if timed
        else [(10**p, f"10^{p} FLOPs") for p in (15, 12, 9, 6, 3, 0)]
    )
    size, unit = next((size, unit) for size, unit in units if most >= 2 * size or size == 1)
    own, whole, top1 = (part[key].to_numpy() / scale for key, scale in ((keys[0], size), (keys[1], size), ("top1", 1)))
    floor = _floor(top1)
    low = top1 < floor  # off the scale; an arrow says so, a label how far
    shown = np.maximum(top1, floor)
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(3.7, title)
        log = whole.max() > 4 * own.min() > 0
        if log:
            axes.set_xscale("log")
        for kind, (marker, colour, label) in KIND.items():
            some = (part["needs"] == kind).to_numpy()
            if not some.any():
                continue
            half = np.where(low, 0, part["half"].fillna(0))[some]
            axes.errorbar(
                whole[some], shown[some], half, fmt=marker, color=colour, ms=6, lw=1, capsize=2, label=label, zorder=3
            )
            moved = some & (own < whole)
            axes.hlines(shown[moved], own[moved], whole[moved], color=colour, lw=1, linestyles="dotted", zorder=2)
            axes.plot(own[moved], shown[moved], marker, color=colour, mfc=PAPER, ms=6, zorder=3)
        for x in whole[low]:
            down = {"arrowstyle": "<-", "color": MUTED}
            axes.annotate("", (x, floor), xytext=(0, -14), textcoords="offset points", arrowprops=down)
        if (own < whole).any():
            axes.plot([], [], "s", color=TAUGHT, mfc=PAPER, ms=6, label="the same, its teacher's training not counted")
        best = frontier(whole, top1)
        axes.step(whole[best], top1[best], where="post", color=MUTED, lw=1.2, zorder=1, label="Pareto frontier")
        axes.margins(x=0.16, y=0.14)
        axes.set(xlabel=f"Training cost with the teacher's training, {unit}", ylabel="Top-1 accuracy, %")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _fit_ticks(axes, log)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8.5)
        names = [
            short(name) + f" ({value:.1f} %)" * bool(below)
            for name, value, below in zip(part["method"], top1, low, strict=True)
        ]
        _labels(figure, axes, whole, shown, names)
    said = "; ".join(f"{m} {a:.2f} % at {c:.3g}" for m, a, c in zip(part["method"], top1, whole, strict=True))
    alt = f"Scatter plot of accuracy against training cost in {unit}, the teacher's included: {said}. On the Pareto frontier: "
    return _finish(figure, name, title, alt + ", ".join(part["method"].to_numpy()[best]) + ".", folder)


def _floor(top1: np.ndarray) -> float:
    """Lowest accuracy on the scale: where one falls far behind, the others are still told apart."""
    middle = float(np.median(top1))
    return middle - max(2 * (float(top1.max()) - middle), 1.0)


def short(name: str, most: int = 28) -> str:
    """A name that fits beside a drawing."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _fit_ticks(axes: Axes, log: bool) -> None:
    if not log:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    low, high = axes.get_xlim()
    if math.log10(high / low) < 1.6:  # too few decades for a tick each
        steps = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factor in (1, 2, 5)
        ]
        axes.set_xticks([step for step in steps if low <= step <= high])


def frontier(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in accuracy at the same or a lower cost, cheapest first."""
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy[order][:-1]]))
    return order[accuracy[order] > best]


def _labels(figure: Canvas, axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Write names beside their points, each where it first finds room."""
    figure.canvas.draw()
    places = axes.transData.transform(np.column_stack([x, y]))
    dpi = figure.dpi / 72
    taken = [(px - 5 * dpi, py - 5 * dpi, px + 5 * dpi, py + 5 * dpi) for px, py in places]
    for index in np.argsort(-y):
        (px, py), name = places[index], names[index]
        width, height = 5.6 * len(name) * dpi, 10 * dpi
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
            fontsize=8.5,
            arrowprops=thread,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def step_split(part: pd.DataFrame, costs: Mapping[str, Cost], name: str, title: str, folder: Path | None) -> Figure | None:
    """One training step by its parts, the whole step as a tick. `costs`: by method."""
    methods = [method for method in part.sort_values("step_ms", ascending=False)["method"] if method in costs]
    if not methods:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(1.2 + 0.26 * len(methods), title)
        left = np.zeros(len(methods))
        known = [*PARTS, *sorted({key for method in methods for key in costs[method].parts} - set(PARTS))]
        for key in known:
            widths = np.array([costs[m].parts[key].median_ms if key in costs[m].parts else 0.0 for m in methods])
            if widths.any():
                hatch = "////" if key == "teacher" else None
                axes.barh(
                    range(len(methods)),
                    widths,
                    left=left,
                    color=PARTS.get(key, PLAIN),
                    label=key,
                    height=0.62,
                    hatch=hatch,
                    edgecolor=PAPER,
                    lw=0.6,
                )
            left += widths
        whole = [costs[method].step for method in methods]
        low_high = [[s.median_ms - s.low_ms for s in whole], [s.high_ms - s.median_ms for s in whole]]
        axes.errorbar(
            [s.median_ms for s in whole],
            range(len(methods)),
            xerr=np.abs(low_high),
            fmt="|",
            color=INK,
            ms=13,
            mew=1.6,
            lw=1,
            label="whole step",
        )
        axes.set_yticks(range(len(methods)), [short(method) for method in methods])
        axes.set(xlabel="Milliseconds a step, measured alone on the machine", xlim=(0, None))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=4, fontsize=8.5)
    teacher = {m: costs[m].parts["teacher"].median_ms if "teacher" in costs[m].parts else 0.0 for m in methods}
    said = "; ".join(f"{m} {costs[m].step.median_ms:.1f} ms, of which the teacher {teacher[m]:.1f}" for m in reversed(methods))
    return _finish(figure, name, title, f"Stacked bars of one training step by part: {said}.", folder)


def learning_curves(
    rows: pd.DataFrame, curves: Mapping[str, Curve], order: Iterable[str], name: str, title: str, folder: Path | None
) -> Figure | None:
    """Test accuracy after each epoch: mean over the seeds with its 95 % t-interval. Eight methods at most.

    Args:
        order: methods, the most interesting first; `none` is always shown.
    """
    ids = rows[rows["id"].isin(curves.keys())].groupby("method")["id"].agg(list)
    known = sorted((method for method in order if method in ids.index), key=lambda method: method != "none")[: len(CYCLE)]
    shown = [*known[1:], *known[:1]] if known[:1] == ["none"] else known
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(3.4, title)
        ends = []
        for index, method in enumerate(shown):
            length = min(len(curves[i].top1) for i in ids[method])
            runs = np.array([curves[i].top1[:length] for i in ids[method]])
            epochs, mean = np.arange(1, length + 1), runs.mean(axis=0)
            axes.plot(epochs, mean, color=CYCLE[index], lw=1.4, ls=("-", (0, (5, 1.5)))[index % 2], label=short(method))
            if len(runs) > 1:
                half = _t_half(runs)
                axes.fill_between(epochs, mean - half, mean + half, color=CYCLE[index], alpha=0.15, lw=0)
            ends.append(f"{method} ends at {mean[-1]:.2f} %")
        low = min(float(np.min(curves[i].top1[len(curves[i].top1) // 5])) for method in shown for i in ids[method])
        axes.set(xlabel="Epoch", ylabel="Top-1 accuracy on the test set, %", ylim=(low - 1, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower left", ncols=4, fontsize=8.5)
    return _finish(figure, name, title, f"Learning curves with 95 % bands over seeds: {'; '.join(ends)}.", folder)


def _t_half(runs: np.ndarray) -> np.ndarray:
    """Half of the 95 % t-interval of each column's mean."""
    return stats.t_quantile(len(runs) - 1) * runs.std(axis=0, ddof=1) / math.sqrt(len(runs))


def forest(part: pd.DataFrame, name: str, title: str, folder: Path | None) -> Figure | None:
    """Gains over `none` with 95 % intervals; filled where the corrected test shows a difference."""
    part = part[part["gain"].notna()].sort_values("gain")
    if part.empty:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(1.2 + 0.26 * len(part), title)
        axes.axvline(0, color=INK, lw=1)
        said = []
        for at, row in enumerate(part.itertuples()):
            marker, colour, _ = KIND[row.needs]
            shown = row.verdict in ("better", "worse")
            if not math.isnan(row.low):
                axes.hlines(at, row.low, row.high, color=colour, lw=1.6)
            axes.plot(row.gain, at, marker, color=colour, mfc=colour if shown else PAPER, ms=7)
            said.append(f"{row.method} {row.gain:+.2f} ({row.low:+.2f} to {row.high:+.2f}), {row.verdict}")
        for kind, (marker, colour, label) in KIND.items():
            if (part["needs"] == kind).any():
                axes.plot([], [], marker, color=colour, ms=7, label=label)
        axes.plot([], [], "o", color=MUTED, mfc=PAPER, ms=7, label="hollow: no difference shown")
        axes.set_yticks(range(len(part)), [short(method) for method in part["method"]])
        axes.set(xlabel="Gain over none in points, with 95 % intervals", ylim=(-0.7, len(part) - 0.3))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8.5)
    return _finish(figure, name, title, f"Forest plot of gains over none in points: {'; '.join(reversed(said))}.", folder)


def sweep(found: Sweep, part: pd.DataFrame, pair: str, setting: str, folder: Path | None) -> Figure:
    """Accuracy along one hyper-parameter with 95 % intervals, and the plain student's as a band."""
    name = f"{pair}-{re.sub(r'[^a-z0-9]+', '-', found.argument.lower())}"
    title = f"{setting}: accuracy along {found.argument}"
    rows = part.set_index("method")
    values = sorted(value for line in found.lines for value, _ in line.points)
    spread = values[-1] >= 20 * abs(values[0])
    said = []
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(3.2, title)
        if spread and values[0] > 0:
            axes.set_xscale("log")
        elif spread and values[0] == 0:
            axes.set_xscale("symlog", linthresh=min(value for value in values if value > 0))
        if "none" in rows.index:
            plain, half = rows.loc["none", "top1"], rows.loc["none", "half"]
            axes.axhline(plain, color=PLAIN, lw=1.2, ls="dashed", label="none")
            if not math.isnan(half):
                axes.axhspan(plain - half, plain + half, color=PLAIN, alpha=0.15, lw=0)
            said.append(f"none {_plus_minus(plain, half)} %")
        for index, line in enumerate(found.lines):
            x, methods = zip(*line.points, strict=True)
            of = rows.loc[list(methods)]
            colour, marker = CYCLE[index % len(CYCLE)], "os^Dv"[index % 5]
            label = line.label or found.argument
            axes.errorbar(x, of["top1"], of["half"], color=colour, marker=marker, ms=6, lw=1.4, capsize=2, label=label)
            halves = zip(x, of["top1"], of["half"], strict=True)
            said += [f"{line.label} {value:g}: {_plus_minus(mean, half)} %".strip() for value, mean, half in halves]
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=found.argument.replace(".", ": ", 1), ylabel="Top-1 accuracy, %")
        figure.legend(loc="outside lower left", ncols=3, fontsize=8.5)
    return _finish(figure, name, title, f"Accuracy along {found.argument}: {'; '.join(said)}.", folder)


def _plus_minus(mean: float, half: float) -> str:
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def beside_published(table: pd.DataFrame, name: str, title: str, folder: Path | None, most: int = 40) -> Figure | None:
    """Published numbers (diamonds) and ours under the same rule (dots)."""
    table = table[table["ours_their_rule"].notna()].drop_duplicates(["pair", "method", "published"]).head(most).iloc[::-1]
    if table.empty:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(1.2 + 0.24 * len(table), title, width=6.2)
        at = np.arange(len(table))
        axes.hlines(at, table["published"], table["ours_their_rule"], color=RULE, lw=2.5)
        axes.plot(table["published"], at, "D", color=TAUGHT, mfc=PAPER, ms=6, label="published")
        axes.plot(table["ours_their_rule"], at, "o", color=FREE, ms=6, label="ours, under its rule")
        axes.plot(table["ours"], at, "|", color=FREE, ms=10, mew=1.6, label="ours, last epoch, mean")
        names = [f"{row.pair}, {row.method}" + f" (ours: {row.differs})" * bool(row.differs) for row in table.itertuples()]
        axes.set_yticks(at, [short(name, 60) for name in names])
        axes.set(xlabel="Top-1 accuracy, %", ylim=(-0.7, len(table) - 0.3))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=3, fontsize=8.5)
    said = "; ".join(
        f"{r.pair} {r.method} published {r.published:.2f}, ours {r.ours_their_rule:.2f}"
        + f" with {r.differs}" * bool(r.differs)
        for r in table.iloc[::-1].itertuples()
    )
    return _finish(figure, name, title, f"Published and own accuracies: {said}.", folder)


def critical_difference(mean_rank: pd.Series, difference: float, name: str, title: str, folder: Path | None) -> Figure:
    """Demšar's diagram: methods at their mean ranks, bars over groups that the test does not tell apart."""
    names, values = list(mean_rank.index), mean_rank.to_numpy()
    half = math.ceil(len(names) / 2)
    groups: list[tuple[int, int]] = []  # first and last method of every longest run within the critical difference
    for start, value in enumerate(values):
        end = int(np.flatnonzero(values <= value + difference)[-1])
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    below = 0.5 * len(groups) + 0.6
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _canvas(1.0 + 0.26 * (half + below), title)
        low, high = math.floor(values.min()), max(math.ceil(values.max()), math.floor(values.min()) + 1)
        axes.set(xlim=(low, high), ylim=(-below - half, 0))
        axes.spines[["left", "right", "bottom"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(yticks=[], xlabel="Mean rank over the pairs of networks (1 is best)")
        for index, (method, value) in enumerate(zip(names, values, strict=True)):
            left = index < half
            y = -below - (index if left else len(names) - 1 - index)
            edge = low if left else high
            axes.plot([value, value, edge], [0.0, y, y], color=MUTED, lw=0.8)
            side: tuple[int, Literal["left", "right"]] = (-4, "right") if left else (4, "left")
            axes.annotate(
                f"{short(method)}  {value:.2f}", (edge, y), (side[0], 0), textcoords="offset points", ha=side[1], va="center"
            )
        for level, (start, end) in enumerate(groups):
            depth = -0.5 * (level + 1)
            axes.plot([values[start], values[end]], [depth, depth], color=FREE, lw=4, solid_capstyle="round", clip_on=False)
    said = ", ".join(f"{method} {value:.2f}" for method, value in mean_rank.items())
    return _finish(figure, name, title, f"Mean ranks: {said}. Ranks closer than {difference:.2f} are not told apart.", folder)
